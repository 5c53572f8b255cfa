"""Runs a network on images outside of training, one or a whole data set."""
