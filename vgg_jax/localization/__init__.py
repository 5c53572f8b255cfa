"""Where the object is: appendix A of arXiv:1409.1556."""
