"""Finds where a prediction and the annotation disagree with confidence. The program is `evaluation/audit.py`."""
