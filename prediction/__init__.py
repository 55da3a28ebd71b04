"""Whole-slide prediction, for predict.py: model, tiles, outlines, files. Importing this imports no TensorFlow yet."""
