"""This package holds forms of operations that are fast on one platform alone."""
