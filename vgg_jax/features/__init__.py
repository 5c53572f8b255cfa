"""Image descriptors and what is learnt from them: appendix B of arXiv:1409.1556."""
