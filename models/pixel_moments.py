"""Batch norm by the moments of all pixels, in parts that TensorFlow's fused kernels add up exactly enough.

On CPUs these kernels add up long runs of pixels in float32. Glass is nearly the same everywhere, so that each sum is
rounded in one direction: of 2048² pixels, nine tenths of them glass, the mean was off by 0.05 standard deviations, of
4096² (the first layers of a patch of 8192²) by 0.4, of 1024² by 0.001. So neighbouring pixels of a larger map are taken
as channels of fewer pixels, for which nothing is copied, and the moments of these are put together (Chan et al., 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

AXES = (0, 1, 2)
LARGE = 1 << 19  # pixels of a map up to which the fused kernels add up all of them
PART = 1 << 16  # pixels that they add up of a larger one
Moments = tuple[tf.Tensor, tf.Tensor]


def is_large(x: tf.Tensor) -> bool:
    """Return whether x (B, H, W, C) has more pixels than a fused kernel should add up; not if that is not known."""
    return x.dtype != tf.float64 and (x.shape[:-1].num_elements() or 0) > LARGE


def normalise(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    moments: Callable[[tf.Tensor], Moments],
    total: Callable[[tf.Tensor], tf.Tensor],
    pixels: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return x (B, H, W, C) normalised as in training; and mean and variance (C,), which have no gradient.

    `moments` returns mean and variance of the whole patches, which have so many `pixels`, and `total` the sum of what
    each rank has of them, here (2, C) in the gradient.
    """

    @tf.custom_gradient
    def normalised(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
        mean, variance = moments(x)
        y = _affine(x, gamma, beta, mean, variance, epsilon)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dx, dgamma, dbeta = _affine_gradient(dy, x, gamma, mean, variance, epsilon)
            inverse = tf.math.rsqrt(variance + epsilon)
            slope = gamma * inverse * (total(tf.stack([dgamma, dbeta])) / pixels)
            return _without_moments(dx, x, slope, mean, inverse), dgamma, dbeta

        return (y, mean, variance), gradient

    return normalised(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def local_moments(x: tf.Tensor) -> Moments:
    """Return mean and variance (C,) of the pixels of x (B, H, W, C)."""
    if x.dtype == tf.float64:  # TensorFlow's fused kernels have no float64
        return tf.nn.moments(x, AXES)
    # Two thirds of the time of tf.nn.moments, in bfloat16 one third, although it also normalises for nothing.
    parts = _parts(x)
    apart = _apart(x, parts)
    one, zero = tf.ones([apart.shape[3]]), tf.zeros([apart.shape[3]])
    found = tf.raw_ops.FusedBatchNormV3(
        x=apart, scale=one, offset=zero, mean=zero, variance=zero, is_training=True
    )
    pixels = apart.shape[:-1].num_elements()
    means = tf.reshape(found.batch_mean, [parts, -1])
    variances = tf.reshape(found.batch_variance, [parts, -1]) * ((pixels - 1) / pixels)
    mean = tf.reduce_mean(means, 0)
    return mean, tf.reduce_mean(variances + tf.math.squared_difference(means, mean), 0)


def _parts(x: tf.Tensor) -> int:
    """Return into how many parts to divide the pixels of x (B, H, W, C): a power of two that divides its width."""
    pixels = x.shape[:-1].num_elements()
    wanted = 1 if pixels <= LARGE else 1 << (math.ceil(pixels / PART) - 1).bit_length()
    return math.gcd(x.shape[2], wanted)


def _apart(x: tf.Tensor, parts: int) -> tf.Tensor:
    """Return x (B, H, W, C) as (B, H, W / parts, parts · C), which has the same bytes."""
    return tf.reshape(x, [x.shape[0], x.shape[1], x.shape[2] // parts, parts * x.shape[3]])


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
    parts = _parts(x)
    found = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=_apart(dy, parts),
        x=_apart(x, parts),
        scale=tf.tile(scale, [parts]),
        reserve_space_1=tf.tile(mean, [parts]),
        reserve_space_2=tf.tile(variance, [parts]),
        reserve_space_3=tf.zeros([0]),
        epsilon=epsilon,
        is_training=False,
    )
    sums = (
        tf.reduce_sum(tf.reshape(s, [parts, -1]), 0) for s in (found.scale_backprop, found.offset_backprop)
    )
    return tf.reshape(found.x_backprop, x.shape), *sums


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
