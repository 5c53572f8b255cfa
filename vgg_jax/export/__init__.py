"""This package writes networks as StableHLO and as ONNX, which run without it."""

from vgg_jax.export.onnx_file import write_onnx
from vgg_jax.export.program import Program
from vgg_jax.export.stablehlo import write_stablehlo

__all__ = ["Program", "write_onnx", "write_stablehlo"]
