"""Batch norm's averages as inference sees them, and when a run estimates them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import normalise
from samplers import Batch
from tests.helpers.rank_weights import build, patches
from training.options import build_parser
from training.plan import PRECISE_BN_BATCHES, Plan
from training.precise_bn import update_precise_statistics
from training.trainer import compute_precise_bn


def test_of_one_batch_they_are_its_statistics_in_every_layer():
    model = build("effdetd0", None, 2)
    images = normalise("effdetd0", patches(0)[0])
    tf.function(update_precise_statistics, autograph=False)(model, images, tf.constant(1.0))
    inference = model(images, training=False)  # first: in training the averages move
    batch, reversed_batch = model(images, training=True).numpy(), model(images[::-1], training=True).numpy()
    rounding = np.abs(batch - reversed_batch[::-1]).max()  # of this CPU: the same sums in another order
    assert np.abs(inference - batch).max() < 8 * rounding


def test_the_variance_is_that_between_images_as_well():
    inputs = keras.Input((4, 4, 1))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs))
    step = tf.function(lambda images, part: update_precise_statistics(model, images, part), autograph=False)
    for i in range(100):  # each image is flat: no batch of one has a variance
        step(tf.fill((1, 4, 4, 1), float(i % 2)), tf.constant(2 / (i + 2)))
    assert float(norm.moving_mean) == pytest.approx(0.5, abs=0.02)
    assert float(norm.moving_variance) == pytest.approx(0.25, abs=0.02)
    model(tf.ones((1, 4, 4, 1)))  # the layer is Keras's again
    assert float(norm.moving_mean) == pytest.approx(0.5, abs=0.02)


def test_of_few_images_no_part_of_the_variance_between_them_is_lost():
    inputs = keras.Input((4, 4, 1))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs))
    step = tf.function(lambda images, part: update_precise_statistics(model, images, part), autograph=False)
    values, weights = np.random.default_rng(0).normal(3, 2, 10), np.arange(1, 11) / 55
    for i, value in enumerate(values):
        step(tf.fill((1, 4, 4, 1), float(value)), tf.constant(2 / (i + 2)))
    mean = (weights * values).sum()
    assert float(norm.moving_mean) == pytest.approx(mean, rel=1e-5)
    assert float(norm.moving_variance) == pytest.approx((weights * (values - mean) ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize(("steps", "expected"), [(24, 1), (320, 10), (50_000, PRECISE_BN_BATCHES)])
def test_a_run_takes_batches_for_them_that_it_does_not_train_on(steps, expected):
    used: list[tuple[int, float]] = []
    batches = (Batch(i, np.full(1, i), np.zeros(1), []) for i in range(100))
    trainer = SimpleNamespace(update_precise_bn=lambda images, part: used.append((int(images[0]), part)))
    plan = Plan.of(build_parser().parse_args(["--num_steps", str(steps)]), ranks=2)
    assert compute_precise_bn(trainer, next(batches), batches, plan.precise_bn_batches).index == expected
    assert [index for index, _ in used] == list(range(expected))
    assert used[0][1] == 1
