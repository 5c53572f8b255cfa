"""This package has a reader for each format of weights; none executes what it reads."""
