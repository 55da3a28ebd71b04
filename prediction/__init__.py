"""Turns slides and a model into probability maps, lesions and outlines. The program is `predict.py`."""
