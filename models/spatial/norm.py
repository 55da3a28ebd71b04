"""Batch normalization whose statistics are those of all rows of the patches, with one exchange forward and one back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models import kernels
from models.spatial.exchange import gather
from models.spatial.place import Call, Form, Place

AXES = (0, 1, 2)


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
    name, epsilon = place.layer.name, place.layer.epsilon

    @tf.custom_gradient
    def normalised(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
        with tf.name_scope(f"{name}/moments"):
            mean, variance = _moments(place, x)
        y = _affine(x, gamma, beta, mean, variance, epsilon)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.name_scope(f"{name}/moments_back"):
                dx, dgamma, dbeta = _affine_gradient(dy, x, gamma, mean, variance, epsilon)
                sums = tf.stack([dgamma, dbeta])
                whole = tf.reduce_sum(gather(sums, place.group, f"{name}.moments_back"), 0) / pixels
                inverse = tf.math.rsqrt(variance + epsilon)
                dx = _without_moments(dx, x, gamma * inverse * whole, mean, inverse)
                return dx, dgamma, dbeta

        return (y, mean, variance), gradient

    return normalised(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def _moments(place: Place, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Collective: return mean and variance (C,) of the whole patches, by the parallel algorithm of Chan et al.

    Each rank's variance is around its own mean: sums of squares would cancel out in float32.
    """
    ranges = place.strips.of(place.heights[0])
    local = tf.stack(_local_moments(x))
    parts = tf.constant([(stop - start) / place.heights[0] for start, stop in ranges], local.dtype)[:, None]
    all_ranks = gather(local, place.group, f"{place.layer.name}.moments")  # (ranks, 2, C)
    means, variances = tf.unstack(all_ranks, axis=1)
    mean = tf.reduce_sum(parts * means, 0)
    return mean, tf.reduce_sum(parts * (variances + tf.math.squared_difference(means, mean)), 0)


def _local_moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean and variance (C,) of this rank's rows."""
    if x.dtype == tf.float64:  # TensorFlow's fused kernels have no float64
        return tf.nn.moments(x, AXES)
    if kernels.is_beyond_fused(x):
        found: tuple[tf.Tensor, tf.Tensor] = kernels.moments(x)
        return found
    # Two thirds of the time of tf.nn.moments, in bfloat16 one third, although it also normalises for nothing.
    one, zero = tf.ones([x.shape[3]]), tf.zeros([x.shape[3]])
    fused = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=one, offset=zero, mean=zero, variance=zero, is_training=True
    )
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    return fused.batch_mean, fused.batch_variance * ((pixels - 1) / pixels)


def _affine(
    x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """Return (x - mean) / √(variance + ε) · scale + offset."""
    if x.dtype == tf.float64:
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, epsilon)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


def _affine_gradient(
    dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the gradients of `_affine` in x, scale and offset, with mean and variance as constants."""
    if x.dtype == tf.float64:
        inverse = tf.math.rsqrt(variance + epsilon)
        return dy * (scale * inverse), tf.reduce_sum(dy * (x - mean), AXES) * inverse, tf.reduce_sum(dy, AXES)
    found = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=dy,
        x=x,
        scale=scale,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros([0]),
        epsilon=epsilon,
        is_training=False,
    )
    return found.x_backprop, found.scale_backprop, found.offset_backprop


@tf.function(jit_compile=True, autograph=False)
def _without_moments(
    dx: tf.Tensor, x: tf.Tensor, slope: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor
) -> tf.Tensor:
    """Return dx less what x has to do with its own mean and variance, which is linear in x: `slope` is (2, C).

    XLA makes one loop of it. As operations each would have a tensor of the size of x, where memory is scarcest.
    """
    wide = slope.dtype
    own = (tf.cast(x, wide) - mean) * inverse * slope[0] + slope[1]
    return tf.cast(tf.cast(dx, wide) - own, dx.dtype)


BATCH_NORM = Form(_height, _call)
