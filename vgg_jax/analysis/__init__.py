"""What a network costs and sees, computed from its rows alone: no weights are made."""

from vgg_jax.analysis.measure import receptive_field, summary
from vgg_jax.analysis.results import LayerSummary, Summary
from vgg_jax.tools.stacks import Stack, compare_stacks, format_stacks

__all__ = [
    "LayerSummary",
    "Stack",
    "Summary",
    "compare_stacks",
    "format_stacks",
    "receptive_field",
    "summary",
]
