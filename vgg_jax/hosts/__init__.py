"""This package has how processes of one run meet, watch one another and stop."""
