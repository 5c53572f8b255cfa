"""This package has fast forms of operations, for programs on one platform alone."""
