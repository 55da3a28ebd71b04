"""From a model and slides to probability maps, lesions and outlines; `predict.py` is the program."""
