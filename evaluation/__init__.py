"""Scores of the CAMELYON challenges, and pixel metrics. Each is a program: `python -m evaluation.camelyon16 --help`."""
