"""Image descriptors and what is learned from them: appendix B of arXiv:1409.1556."""
