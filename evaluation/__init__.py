"""Scores of the CAMELYON challenges and pixel metrics, each a program: `python -m evaluation.camelyon16 --help`."""
