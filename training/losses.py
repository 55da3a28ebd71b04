"""Losses for segmentation, computed in float32 at least."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from samplers.labels.label_map import IGNORED
from training.choices import LOSSES
from training.strips import sum_by_strips

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # labels uint8 (B, H, W), logits (B, H, W, C) → scalar
Total = Callable[[tf.Tensor], tf.Tensor]  # sums over this rank's pixels → sums over whole patches

DICE_SMOOTH = 1.0  # pixels; keeps a class that is in neither labels nor prediction at 1


def make_loss(name: str, class_weights: Sequence[float] = (), total: Total = tf.identity) -> Loss:
    """Return loss `name` of `LOSSES`: labels uint8 (B, H, W), logits (B, H, W, C) → scalar, computed in strips.

    With `total` it is the loss of the whole patches that several ranks share, the same on each of them.
    It is a mean over the pixels that are not IGNORED; without any it is 0. `class_weights` multiply the loss of a
    pixel by its class; classes beyond them weigh 1. Dice balances the classes itself and takes no weights: ValueError,
    rather than an option that does nothing.
    """
    if name == "dice":
        if any(weight != 1 for weight in class_weights):
            raise ValueError(f"the Dice loss takes no class weights, here {list(class_weights)}")
        return functools.partial(_dice, total)
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown; there are {', '.join(LOSSES)}")
    of_pixels = {"cross_entropy": _cross_entropy, "focal": _focal}[name]
    weights = np.ones(256, np.float32)
    weights[: len(class_weights)] = class_weights
    weights[IGNORED] = 0

    def sums(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        known = labels != IGNORED
        classes = tf.where(known, tf.cast(labels, tf.int32), 0)
        loss = of_pixels(classes, _wide(logits))
        loss *= tf.gather(tf.constant(weights, loss.dtype), tf.cast(labels, tf.int32))
        return tf.stack([tf.reduce_sum(loss), tf.reduce_sum(tf.cast(known, loss.dtype))])

    def mean(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        loss, known = tf.unstack(total(sum_by_strips(sums, labels, logits)))
        return loss / tf.maximum(known, 1.0)

    return mean


def _wide(logits: tf.Tensor) -> tf.Tensor:
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy of each pixel (pixels,), from the library's kernel that is fused with softmax."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def _focal(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the focal loss (arXiv 1708.02002, γ = 2) of each pixel (pixels,); class weights stand for its α."""
    log_p = tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)
    # Not Keras's: it clips probabilities, so that what is most wrong has no gradient.
    return -tf.square(tf.math.expm1(log_p)) * log_p


def _dice(total: Total, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return 1 - soft Dice (arXiv 1606.04797) per class over the known pixels of the batch, averaged over classes."""
    both, either = tf.unstack(total(sum_by_strips(_overlaps, labels, logits)))
    return 1 - tf.reduce_mean((2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH))


def _overlaps(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return for each class the known pixels that label and prediction share, and the sum of both: (2, C)."""
    logits = _wide(logits)
    known = tf.cast(labels != IGNORED, logits.dtype)[:, tf.newaxis]
    probabilities = tf.nn.softmax(logits) * known
    one_hot = tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)  # 0 in all classes for IGNORED
    return tf.stack(
        [tf.reduce_sum(probabilities * one_hot, axis=0), tf.reduce_sum(probabilities + one_hot, axis=0)]
    )
