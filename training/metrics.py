"""Segmentation metrics from counts of the known pixels: summed over batches and ranks, divided once.

A confusion matrix (C, C), rows = label, columns = prediction, gives IoU, Dice, precision and recall;
two histograms of the tumour probability (1 - p[class 0]) over pixels, one of each label, give the AUC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from samplers.labels.label_map import IGNORED
from training.strips import sum_by_strips
from utils.ranks.single import Ranks

AUC_BINS = 512


@dataclass
class Counts:
    """Sums over batches: `confusion` int64 (C, C), `histogram` int64 (2, AUC_BINS), `loss` a sum over images."""

    num_classes: int
    confusion: np.ndarray = field(init=False)
    histogram: np.ndarray = field(init=False)
    loss: float = 0.0
    images: int = 0

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        self.histogram = np.zeros((2, AUC_BINS), np.int64)

    def add(self, confusion: np.ndarray, histogram: np.ndarray, loss: float, images: int) -> None:
        """Add one batch: its counts, its mean loss and its number of images."""
        self.confusion += confusion
        self.histogram += histogram
        self.loss += loss * images
        self.images += images

    def summed(self, ranks: Ranks) -> Counts:
        """Collective: return the counts of all ranks together."""
        return Counts.unpacked(ranks.sum(self.packed()), self.num_classes)

    def packed(self) -> np.ndarray:
        """Return all in one float64 vector, exact for counts below 2^53, for one reduction over ranks."""
        return np.concatenate(
            [self.confusion.ravel(), self.histogram.ravel(), [self.loss, self.images]], dtype=float
        )

    @classmethod
    def unpacked(cls, vector: np.ndarray, num_classes: int) -> Counts:
        counts = cls(num_classes)
        cells = num_classes**2
        counts.confusion = vector[:cells].astype(np.int64).reshape(num_classes, num_classes)
        counts.histogram = vector[cells:-2].astype(np.int64).reshape(2, AUC_BINS)
        counts.loss, counts.images = float(vector[-2]), int(vector[-1])
        return counts

    def summary(self) -> dict[str, Any]:
        """Return `loss`, `miou`, `iou` and `dice` per class, `auc`, as metrics.jsonl has them.

        A class that is neither in the labels nor predicted has no IoU (None) and does not count in the mean.
        `calibration_error`: expected calibration error of the tumour probability over pixels.
        """
        ious, hits = iou(self.confusion), np.diag(self.confusion)
        return {
            "loss": self.loss / self.images if self.images else None,
            "miou": mean_iou(self.confusion),
            "iou": [None if np.isnan(v) else float(v) for v in ious],
            "dice": [None if np.isnan(v) else float(2 * v / (1 + v)) for v in ious],
            "precision": _ratios(hits, self.confusion.sum(0)),
            "recall": _ratios(hits, self.confusion.sum(1)),
            "auc": auc(self.histogram),
            "calibration_error": calibration(self.histogram)[1],
        }


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [float(part / whole) if whole else None for part, whole in zip(parts, wholes)]


def calibration(histogram: np.ndarray, bins: int = 16) -> tuple[np.ndarray, float | None]:
    """Return the reliability of the tumour probability, from (2, AUC_BINS) counts of label 0 and 1.

    Returns float (bins, 3): pixels, mean probability, part that is tumour (NaN where there are no pixels), and
    the expected calibration error (Guo et al., arXiv 1706.04599, equation 3), None without pixels.
    """
    middle = (np.arange(AUC_BINS) + 0.5) / AUC_BINS
    pixels = histogram.sum(0).reshape(bins, -1).sum(1).astype(float)
    probability = (histogram.sum(0) * middle).reshape(bins, -1).sum(1)
    tumour = histogram[1].reshape(bins, -1).sum(1)
    rows = np.full((bins, 3), np.nan)
    rows[:, 0], some = pixels, pixels > 0
    rows[some, 1], rows[some, 2] = probability[some] / pixels[some], tumour[some] / pixels[some]
    error = np.abs(probability - tumour).sum() / pixels.sum() if some.any() else None
    return rows, None if error is None else float(error)


def patch_confusions(labels: np.ndarray, classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Return each patch's confusion matrix, int64 (C, C), rows = label, from uint8 labels and classes (B, H, W).

    Pixels whose label is IGNORED are not counted.
    """
    cells = num_classes**2

    def counted(label: np.ndarray, found: np.ndarray) -> np.ndarray:
        # Row by row: numpy counts in int64, which of a whole patch of 8192² is a gigabyte. IGNORED is behind all cells.
        rows = (
            np.bincount(a.astype(np.intp) * num_classes + b, minlength=cells)[:cells]
            for a, b in zip(label, found)
        )
        return sum(rows, np.zeros(cells, np.int64)).reshape(num_classes, num_classes)

    return [counted(label, found) for label, found in zip(labels, classes)]


def iou(confusion: np.ndarray) -> np.ndarray:
    """Return the intersection over union (C,) of counts (C, C), NaN where the class does not occur."""
    hits = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float | None:
    """Return the mean IoU of the classes that occur; None when nothing was counted."""
    values = iou(confusion)
    return None if np.isnan(values).all() else float(np.nanmean(values))


def auc(histogram: np.ndarray) -> float | None:
    """Return the area under the ROC curve from (2, bins) counts of label 0 and 1; ties in a bin count half.

    None when one of the labels does not occur.
    """
    negative, positive = histogram.astype(float)
    if not negative.sum() or not positive.sum():
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def batch_counts(labels: tf.Tensor, probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Count in a graph: uint8 (B, H, W), float (B, H, W, C) → confusion (C, C), histogram (2, AUC_BINS), int64.

    IGNORED pixels fall behind the last cell and the last bin, which are not counted.
    """
    classes = probabilities.shape[-1]
    label = tf.reshape(tf.cast(labels, tf.int64), [-1])
    predicted = tf.reshape(tf.argmax(probabilities, -1, output_type=tf.int64), [-1])
    tumour = tf.reshape(1.0 - tf.cast(probabilities[..., 0], tf.float32), [-1])
    bins = tf.clip_by_value(tf.cast(tumour * AUC_BINS, tf.int64), 0, AUC_BINS - 1)
    bins += AUC_BINS * (tf.cast(label > 0, tf.int64) + tf.cast(label == IGNORED, tf.int64))
    confusion, histogram = _bincount(label * classes + predicted, classes**2), _bincount(bins, 2 * AUC_BINS)
    return tf.reshape(confusion, [classes, classes]), tf.reshape(histogram, [2, AUC_BINS])


def _bincount(values: tf.Tensor, size: int) -> tf.Tensor:
    """Count int64 values (pixels,) from 0 on; what is not below `size` is left out. Returns int64 (size,).

    `tf.math.bincount` wants int32, whose arithmetic TensorFlow does in main memory, also where a GPU computes.
    """
    none = tf.constant([], tf.int32)
    counts = tf.raw_ops.DenseBincount(input=values, size=tf.constant(size, tf.int64), weights=none)
    return tf.cast(counts, tf.int64)


def strip_counts(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the `batch_counts` of logits, strip by strip."""
    return sum_by_strips(lambda y, x: batch_counts(y, tf.nn.softmax(x)), labels, logits)
