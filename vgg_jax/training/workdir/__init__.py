"""This package keeps what a run leaves in its folder, and ties the two together."""
