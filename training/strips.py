"""Sums over pixels, strip by strip, so that a field of view of any size takes the memory of one strip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

PIXELS = 2**20  # of a strip

# labels uint8 (pixels,) and logits (pixels, C) → what is summed: tensors that are 0 when there is no pixel
PixelSums = Callable[[tf.Tensor, tf.Tensor], Any]


def sum_by_strips(function: PixelSums, labels: tf.Tensor, logits: tf.Tensor) -> Any:
    """Return the sum of `function` over strips of labels uint8 (B, H, W) and logits (B, H, W, C).

    Has a gradient in the logits, which computes the strips again, where `function` gives one float tensor.
    """
    labels, flat = tf.reshape(labels, [-1]), tf.reshape(logits, [-1, logits.shape[-1]])
    strips = -(-tf.shape(labels)[0] // PIXELS)

    def strip(x: tf.Tensor, i: tf.Tensor) -> tf.Tensor:
        return x[i * PIXELS : (i + 1) * PIXELS]

    def loop(body: Callable[[tf.Tensor, Any], Any], start: Any) -> Any:
        return tf.while_loop(
            lambda i, _: i < strips, lambda i, x: (i + 1, body(i, x)), (0, start), parallel_iterations=1
        )[1]

    @tf.custom_gradient
    def total(flat: tf.Tensor) -> tuple[Any, Callable[..., tf.Tensor]]:
        def add(i: tf.Tensor, sums: Any) -> Any:
            return tf.nest.map_structure(tf.add, sums, function(strip(labels, i), strip(flat, i)))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            def write(i: tf.Tensor, parts: tf.TensorArray) -> tf.TensorArray:
                x = strip(flat, i)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    sums = function(strip(labels, i), x)
                return parts.write(i, tape.gradient(sums, x, upstream))

            shape = [None, flat.shape[-1]]
            parts = tf.TensorArray(flat.dtype, strips, infer_shape=False, element_shape=shape)
            return loop(write, parts).concat()

        return loop(add, function(labels[:0], flat[:0])), gradient

    return total(flat)
