"""Section 3.2: dense and center-crop evaluation, its errors, tables and pictures."""
