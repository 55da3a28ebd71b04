"""Batch norm's moving averages, estimated anew as inference sees them.

In training each batch is normalised by its own statistics, so the averages miss how images differ from each
other: of batches of one or two images a network that goes by them is another one (the loss of EfficientDet-D4
went from 0.3 to 330 when they were frozen). Here each layer is normalised by the averages of the layers before
it, and its variance is that around the mean of all images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models import kernels
from models.recompute import Run, call_model

Mean = Callable[[keras.layers.Layer, tf.Tensor], tf.Tensor]  # a layer, its input (B, H, W, C) → (C,)


def mean_of_pixels(layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Return the mean (C,) of all pixels of `x` (B, H, W, C)."""
    return kernels.mean_of_rows(x)


def update_precise_statistics(
    model: keras.Model, images: tf.Tensor, part: tf.Tensor, run: Run = call_model, mean: Mean = mean_of_pixels
) -> None:
    """Move the averages of all batch norms by `part` (0 to 1) towards the statistics of normalised `images`.

    `run` and `mean` are those of `models.spatial` where several ranks share the images.
    In inference mode, in a graph (tf.function), where a layer reads its averages after they were moved. With 1 they
    become those of this batch, and the next call brings the mean over both with 1/2.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    with _measuring(norms, part, mean):
        run(model, images, False)


@contextlib.contextmanager
def _measuring(norms: Sequence[keras.layers.Layer], part: tf.Tensor, mean: Mean) -> Iterator[None]:
    for norm in norms:
        norm.call = functools.partial(_measure, norm, norm.call, part, mean)  # hides the method
    try:
        yield
    finally:
        for norm in norms:
            del norm.call


def _measure(
    norm: keras.layers.Layer,
    call: Callable[..., tf.Tensor],
    part: tf.Tensor,
    mean: Mean,
    inputs: tf.Tensor,  # (B, H, W, C)
    training: Any = None,
) -> tf.Tensor:
    x = tf.cast(inputs, norm.moving_mean.dtype)
    part = tf.cast(part, x.dtype)
    before, of_batch = norm.moving_mean.read_value(), mean(norm, x)
    now = before + part * (of_batch - before)
    norm.moving_mean.assign(now)
    # The mean of (x - before) · (x - now) (Welford, 1962), without a tensor for each: around the mean that has moved
    # already, a part of the variance between images would be lost.
    spread = mean(norm, tf.math.squared_difference(x, now)) + (now - before) * (of_batch - now)
    norm.moving_variance.assign_add(part * (spread - norm.moving_variance))
    return call(inputs, training=False)
