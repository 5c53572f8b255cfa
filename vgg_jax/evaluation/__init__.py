"""Section 3.2: dense and centre-crop evaluation, its errors, tables and pictures."""
