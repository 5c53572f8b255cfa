"""Turns trained networks and protocols into numbers (section 3.2)."""
