"""Sums by strips: the same as at once, and so is their gradient."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.toy_models import noise
from training import strips
from training.losses import LOSSES, make_loss
from training.metrics import batch_counts, strip_counts

LABELS = np.random.default_rng(0).integers(0, 3, (2, 7, 9)).astype(np.uint8)
LOGITS = tf.constant(noise(2, 7, 9, 3))


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_by_strips(name, graph, monkeypatch):
    def value_and_gradient() -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(LOGITS)
            loss = make_loss(name)(LABELS, LOGITS)
        return loss, tape.gradient(loss, LOGITS)

    at_once = value_and_gradient()
    monkeypatch.setattr(strips, "PIXELS", 40)  # 126 pixels: the last strip is shorter
    by_strips = (tf.function(value_and_gradient) if graph else value_and_gradient)()
    for found, expected in zip(by_strips, at_once):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_counts_by_strips(monkeypatch):
    monkeypatch.setattr(strips, "PIXELS", 40)
    expected = batch_counts(LABELS, tf.nn.softmax(LOGITS))
    for found, whole in zip(strip_counts(LABELS, LOGITS), expected):
        np.testing.assert_array_equal(found, whole)
