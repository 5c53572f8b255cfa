"""This package writes data sets to disk once, in TensorFlow Datasets' format."""
