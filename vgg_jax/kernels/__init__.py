"""This package has fast forms of operations, chosen by the platform of a program."""
