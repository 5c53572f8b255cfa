"""What a network costs and sees, computed from its rows alone: no weights are made."""

from vgg_jax.analysis.measure import receptive_field, summary
from vgg_jax.analysis.results import LayerSummary, Summary

__all__ = [
    "LayerSummary",
    "Summary",
    "receptive_field",
    "summary",
]
