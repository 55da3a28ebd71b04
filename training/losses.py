"""Losses for segmentation, computed in float32."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf
import tf_keras as keras

from training.choices import LOSSES
from training.strips import sum_by_strips

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # labels uint8 (B, H, W), logits (B, H, W, C) → scalar

DICE_SMOOTH = 1.0  # pixels; keeps a class that is in neither labels nor prediction at 1


def make_loss(name: str, pos_weight: float = 1.0, neg_weight: float = 1.0) -> Loss:
    """Return loss `name` of `LOSSES`: labels uint8 (B, H, W), logits (B, H, W, C) → float32 scalar, a mean over pixels.

    Pixels of class 0 weigh `neg_weight`, all others `pos_weight`. Dice balances the classes itself and takes
    no weights: ValueError if they differ, rather than an option that does nothing. Computed strip by strip.
    """
    if name == "dice":
        if pos_weight != neg_weight:
            raise ValueError(
                f"the Dice loss takes no pixel weights (tumour {pos_weight}, other {neg_weight})"
            )
        return _dice
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown; there are {', '.join(LOSSES)}")
    of_pixels = {"cross_entropy": _cross_entropy, "focal": _focal}[name]

    def weighted(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(_pixel_weights(labels, pos_weight, neg_weight) * of_pixels(labels, logits))

    return lambda labels, logits: (
        sum_by_strips(weighted, labels, logits) / tf.cast(tf.size(labels), tf.float32)
    )


def _pixel_weights(labels: tf.Tensor, pos_weight: float, neg_weight: float) -> tf.Tensor:
    return tf.where(labels == 0, tf.constant(neg_weight, tf.float32), tf.constant(pos_weight, tf.float32))


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy of each pixel (pixels,), from the library's kernel that is fused with softmax."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.cast(labels, tf.int32), tf.cast(logits, tf.float32)
    )


def _focal(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the focal loss (arXiv 1708.02002, γ = 2) of each pixel (pixels,); pixel weights stand for its α."""
    one_hot = tf.one_hot(labels, logits.shape[-1])
    return keras.losses.categorical_focal_crossentropy(
        one_hot, tf.cast(logits, tf.float32), alpha=1.0, gamma=2.0, from_logits=True
    )


def _dice(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return 1 - soft Dice (arXiv 1606.04797) per class over the batch, averaged over classes."""
    both, either = tf.unstack(sum_by_strips(_overlaps, labels, logits))
    return 1 - tf.reduce_mean((2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH))


def _overlaps(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return for each class the pixels that label and prediction share, and the sum of both: float32 (2, C)."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    one_hot = tf.one_hot(labels, logits.shape[-1])
    return tf.stack(
        [tf.reduce_sum(probabilities * one_hot, axis=0), tf.reduce_sum(probabilities + one_hot, axis=0)]
    )
