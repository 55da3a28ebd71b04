"""Losses against numbers worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.toy_models import noise
from training.losses import LOSSES, make_loss

LABELS = np.array([[[0, 1], [2, 0]]], np.uint8)
EVEN = np.zeros((1, 2, 2, 3), np.float32)  # every class has probability 1/3


def sure(labels):
    return tf.one_hot(labels, 3) * 100.0


def test_cross_entropy_of_even_odds():
    assert make_loss("cross_entropy")(LABELS, EVEN).numpy() == pytest.approx(np.log(3))


def test_pixels_weigh_by_class():
    loss = make_loss("cross_entropy", [2.0, 5.0, 5.0])(LABELS, EVEN)
    assert loss.numpy() == pytest.approx(np.log(3) * (2 + 5 + 5 + 2) / 4)


def test_focal_discounts_by_the_square_of_what_is_missing():
    loss = make_loss("focal", [2.0, 5.0, 5.0])(LABELS, EVEN)
    assert loss.numpy() == pytest.approx((2 / 3) ** 2 * np.log(3) * 14 / 4, rel=1e-5)


def test_dice_is_a_mean_over_classes():
    loss = make_loss("dice")(LABELS, EVEN).numpy()
    per_class = [(2 * n / 3 + 1) / (n + 4 / 3 + 1) for n in (2, 1, 1)]
    assert loss == pytest.approx(1 - np.mean(per_class))


@pytest.mark.parametrize("name", LOSSES)
def test_right_is_better_than_wrong(name):
    loss = make_loss(name)
    right, wrong = loss(LABELS, sure(LABELS)).numpy(), loss(LABELS, sure((LABELS + 1) % 3)).numpy()
    assert right == pytest.approx(0, abs=1e-5)
    assert wrong > 0.3


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_what_is_most_wrong_has_a_gradient(name):
    logits = tf.constant([[[[30.0, 0.0, 0.0]]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(name)(np.ones((1, 1, 1), np.uint8), logits)
    assert tape.gradient(loss, logits).numpy().ravel() == pytest.approx([1, -1, 0], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_go_through_float32(name):
    logits = tf.constant(noise(1, 2, 2, 3), tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(name)(LABELS, logits)
    assert loss.dtype == tf.float32
    assert tf.reduce_all(tape.gradient(loss, logits) != 0)


def test_what_is_no_loss_is_refused():
    with pytest.raises(ValueError, match=r"hinge.*there are cross_entropy"):
        make_loss("hinge")
    with pytest.raises(ValueError, match="takes no class weights"):
        make_loss("dice", [1.0, 2.0])


def test_each_class_has_its_weight():
    loss = make_loss("cross_entropy", [2.0, 5.0, 0.5])(LABELS, EVEN)
    assert loss.numpy() == pytest.approx(np.log(3) * (2 + 5 + 0.5 + 2) / 4)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_are_as_if_they_were_not_there(name):
    """The loss is that of the other pixels, and the gradient is 0 where the label is ignored, to the bit."""
    logits = tf.constant(noise(1, 2, 3, 3))
    labels = np.array([[[0, 1, 255], [2, 0, 255]]], np.uint8)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        loss = make_loss(name)(labels, logits)
        others = make_loss(name)(labels[:, :, :2], logits[:, :, :2])
    gradient, expected = (tape.gradient(value, logits).numpy() for value in (loss, others))
    assert loss.numpy() == pytest.approx(others.numpy(), rel=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert gradient[:, :, :2].all()
    assert not gradient[:, :, 2].any()


@pytest.mark.parametrize("name", LOSSES)
def test_where_nothing_is_known_nothing_is_learnt(name):
    logits = tf.constant(noise(1, 2, 2, 3))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(name)(np.full((1, 2, 2), 255, np.uint8), logits)
    assert loss.numpy() == 0
    assert not tape.gradient(loss, logits).numpy().any()
