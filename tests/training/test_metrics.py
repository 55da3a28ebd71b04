"""Counts against scikit-learn, and summed in unequal batches."""

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score, roc_auc_score

from training.metrics import AUC_BINS, Counts, auc, batch_counts, calibration, iou, mean_iou, patch_confusions


def batch(rng: np.random.Generator, n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, classes, (n, 8, 8)).astype(np.uint8)
    logits = rng.normal(size=(n, 8, 8, classes)) + 2 * np.eye(classes)[labels]
    return labels, tf.nn.softmax(logits.astype(np.float32)).numpy()


def test_confusion_and_iou_equal_sklearn():
    labels, probabilities = batch(np.random.default_rng(0), 4)
    confusion, _ = batch_counts(labels, probabilities)
    predicted = probabilities.argmax(-1)
    np.testing.assert_array_equal(confusion, confusion_matrix(labels.ravel(), predicted.ravel()))
    np.testing.assert_allclose(
        iou(confusion.numpy()), jaccard_score(labels.ravel(), predicted.ravel(), average=None)
    )


def test_auc_equals_sklearn_on_binned_scores():
    labels, probabilities = batch(np.random.default_rng(1), 6, classes=2)
    _, histogram = batch_counts(labels, probabilities)
    bins = np.minimum(((1 - probabilities[..., 0]) * AUC_BINS).astype(int), AUC_BINS - 1)
    assert auc(histogram.numpy()) == pytest.approx(roc_auc_score(labels.ravel(), bins.ravel()))


def test_unequal_batches_sum_to_the_whole():
    labels, probabilities = batch(np.random.default_rng(2), 5)
    whole, parts = Counts(3), Counts(3)
    for counts, cuts in ((whole, [0, 5]), (parts, [0, 1, 5])):
        for a, b in pairwise(cuts):
            confusion, histogram = batch_counts(labels[a:b], probabilities[a:b])
            counts.add(confusion.numpy(), histogram.numpy(), float(labels[a:b].mean()), b - a)
    assert parts.summary()["loss"] == pytest.approx(labels.mean())
    assert parts.summary()["miou"] == whole.summary()["miou"]
    assert parts.images == 5


def test_packing_keeps_everything():
    counts = Counts(2)
    counts.add(np.array([[2**40, 1], [2, 3]]), np.full((2, AUC_BINS), 7), 0.5, 3)
    again = Counts.unpacked(counts.packed(), 2)
    assert again.summary() == counts.summary()
    assert again.confusion[0, 0] == 2**40


def test_absent_class_does_not_count():
    assert mean_iou(np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])) == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert mean_iou(np.zeros((2, 2))) is None
    assert auc(np.zeros((2, AUC_BINS))) is None


def test_precision_and_recall_equal_sklearn():
    labels, probabilities = batch(np.random.default_rng(4), 4)
    confusion, histogram = batch_counts(labels, probabilities)
    counts = Counts(3)
    counts.add(confusion.numpy(), histogram.numpy(), 0.0, 4)
    predicted = probabilities.argmax(-1).ravel()
    summary = counts.summary()
    assert summary["precision"] == pytest.approx(precision_score(labels.ravel(), predicted, average=None))
    assert summary["recall"] == pytest.approx(recall_score(labels.ravel(), predicted, average=None))


def test_calibration_by_hand():
    histogram = np.zeros((2, AUC_BINS), np.int64)
    histogram[0, 0], histogram[1, 0] = 3, 1  # probability 0.001, a quarter is tumour
    histogram[1, -1] = 4  # 0.999, all of it
    rows, error = calibration(histogram)
    low, high = 0.5 / AUC_BINS, 1 - 0.5 / AUC_BINS
    np.testing.assert_allclose(rows[[0, -1]], [[4, low, 0.25], [4, high, 1]])
    assert np.isnan(rows[1:-1, 1:]).all()
    assert error == pytest.approx((0.25 - low + 1 - high) / 2)
    assert calibration(np.zeros((2, AUC_BINS), np.int64))[1] is None


def test_confusions_of_patches_sum_to_the_batchs():
    labels, probabilities = batch(np.random.default_rng(5), 4)
    parts = patch_confusions(labels, probabilities.argmax(-1).astype(np.uint8), 3)
    np.testing.assert_array_equal(sum(parts), batch_counts(labels, probabilities)[0])


def test_ignored_pixels_are_not_counted():
    labels, probabilities = batch(np.random.default_rng(6), 4)
    ignored = np.random.default_rng(7).random(labels.shape) < 0.3
    masked = np.where(ignored, 255, labels).astype(np.uint8)
    confusion, histogram = batch_counts(masked, probabilities)
    predicted = probabilities.argmax(-1).astype(np.uint8)
    np.testing.assert_array_equal(confusion, confusion_matrix(labels[~ignored], predicted[~ignored]))
    np.testing.assert_array_equal(sum(patch_confusions(masked, predicted, 3)), confusion)
    known = labels[~ignored] > 0
    assert histogram.numpy().sum(1).tolist() == [(~known).sum(), known.sum()]
