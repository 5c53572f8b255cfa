"""Describes images by a network's activations, for an SVM (appendix B)."""
