"""Offline commands: each answers one question about a network or a data set."""
