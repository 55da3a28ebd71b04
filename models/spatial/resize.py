"""Bilinear resizing of strips: source rows are computed from the rows of the whole feature map."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from models.spatial.place import Call, Form, Place
from models.spatial.rows import Range


def _sources(outputs: int, inputs: int, rows: Range, align_corners: bool) -> np.ndarray:
    """Return where `rows` of `outputs` rows lie among `inputs` rows, as TensorFlow's two kinds of resizing have it."""
    row = np.arange(*rows, dtype=float)
    if align_corners:
        return row * ((inputs - 1) / (outputs - 1) if outputs > 1 else 0)
    return np.clip((row + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)


def _interpolate(x: tf.Tensor, axis: int, sources: np.ndarray) -> tf.Tensor:
    """Return the values of `x` between its rows or columns."""
    lower = np.floor(sources).astype(np.int32)
    upper = np.minimum(lower + 1, x.shape[axis] - 1)
    weights = tf.constant((sources - lower).reshape([-1 if i == axis else 1 for i in range(4)]), x.dtype)
    below = tf.gather(x, lower, axis=axis)
    return below + (tf.gather(x, upper, axis=axis) - below) * weights


def _resize(place: Place, x: tf.Tensor, width: int, align_corners: bool) -> tf.Tensor:
    """Return this rank's rows of `x` resized to the place's height and `width`."""
    inputs, outputs = place.heights[0], place.height

    def reads(rows: Range) -> Range:
        sources = _sources(outputs, inputs, rows, align_corners)
        return math.floor(sources[0]), min(math.floor(sources[-1]) + 2, inputs)

    first = reads(place.rows)[0]
    y = place.take(x, reads)
    y = tf.cast(y, tf.float64 if x.dtype == tf.float64 else tf.float32)
    y = _interpolate(y, 1, _sources(outputs, inputs, place.rows, align_corners) - first)
    if y.dtype == tf.float64:  # TensorFlow's kernel gives float32
        y = _interpolate(y, 2, _sources(width, x.shape[2], (0, width), align_corners))
    else:
        size = y.shape[1], width
        y = tf.raw_ops.ResizeBilinear(
            images=y, size=size, align_corners=align_corners, half_pixel_centers=not align_corners
        )
    return tf.cast(y, x.dtype)


def _resize_like(place: Place, call: Call, inputs: list[tf.Tensor], training: bool) -> tf.Tensor:
    x, like = inputs
    return _resize(place, x, like.shape[2], align_corners=True)


def _upsample(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    layer = place.layer
    rows, columns = layer.size
    if layer.interpolation == "bilinear":
        return _resize(place, x, x.shape[2] * columns, align_corners=False)
    start, stop = place.rows

    def reads(outputs: Range) -> Range:
        return outputs[0] // rows, (outputs[1] - 1) // rows + 1

    y, first = call(place.take(x, reads)), reads(place.rows)[0] * rows
    return y[:, start - first : stop - first] if y.shape[1] != stop - start else y


def _upsampled_height(layer: tf.keras.layers.UpSampling2D, heights: tuple[int, ...]) -> int:
    if layer.interpolation not in ("nearest", "bilinear"):
        raise ValueError(f"interpolation {layer.interpolation} has no spatial form")
    return heights[0] * layer.size[0]


RESIZE_LIKE = Form(lambda layer, heights: heights[1], _resize_like)
UPSAMPLING = Form(_upsampled_height, _upsample)
