"""Finds where objects are (appendix A of arXiv:1409.1556)."""
