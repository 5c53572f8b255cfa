"""Writes data sets to disk once, in the format of TensorFlow Datasets."""
