"""Batch normalization whose statistics are those of all rows of the patches, with one exchange forward and one back."""

from __future__ import annotations

import functools

import tensorflow as tf
import tf_keras as keras

from models.pixel_moments import local_moments, normalise
from models.spatial.exchange import gather
from models.spatial.place import Call, Form, Place


def _height(layer: keras.layers.Layer, heights: tuple[int, ...]) -> int:
    if (
        list(layer.axis) != [3]
        or layer.renorm
        or layer.virtual_batch_size
        or not (layer.center and layer.scale)
    ):
        raise ValueError(f"batch norm {layer.name} is not over pixels with a scale and an offset")
    return heights[0]


def _call(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    layer = place.layer
    if not training or not layer.trainable or not place.divided:
        return call(x, training=training)
    pixels = x.shape[0] * place.heights[0] * x.shape[2]
    y, mean, variance = _normalise(place, x, layer.gamma, layer.beta, pixels)
    if layer.fused and pixels > 1:  # Keras's fused kernel estimates the variance of all images that there are
        variance *= pixels / (pixels - 1)
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        layer.add_update(
            functools.partial(layer._assign_moving_average, average, value, layer.momentum, None)
        )
    return y


def _normalise(
    place: Place, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, pixels: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return this rank's rows of the result; and mean and variance (C,) of whole patches, which have no gradient."""
    name = place.layer.name

    def moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope(f"{name}/moments"):
            return _moments(place, x)

    def total(sums: tf.Tensor) -> tf.Tensor:
        with tf.name_scope(f"{name}/moments_back"):
            return tf.reduce_sum(gather(sums, place.group, f"{name}.moments_back"), 0)

    return normalise(x, gamma, beta, place.layer.epsilon, moments, total, pixels)


def _moments(place: Place, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Collective: return mean and variance (C,) of the whole patches, by the parallel algorithm of Chan et al.

    Each rank's variance is around its own mean: sums of squares would cancel out in float32.
    """
    ranges = place.strips.of(place.heights[0])
    local = tf.stack(local_moments(x))
    parts = tf.constant([(stop - start) / place.heights[0] for start, stop in ranges], local.dtype)[:, None]
    all_ranks = gather(local, place.group, f"{place.layer.name}.moments")  # (ranks, 2, C)
    means, variances = tf.unstack(all_ranks, axis=1)
    mean = tf.reduce_sum(parts * means, 0)
    return mean, tf.reduce_sum(parts * (variances + tf.math.squared_difference(means, mean)), 0)


BATCH_NORM = Form(_height, _call)
