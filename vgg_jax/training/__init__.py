"""This package trains networks as section 3.1 of arXiv:1409.1556 says."""
