"""Optimizers against numpy, one variable at a time, and what goes through Horovod's copy of them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from training.choices import OPTIMIZERS
from training.optimizers import make_optimizer

RATE, STEPS = 0.1, 3
START = np.array([0.5, -1.0, 2.0], np.float32)
GRADIENTS = np.array([[0.1, -0.2, 0.3], [0.4, 0.1, -0.5], [-0.3, 0.2, 0.1]], np.float32)


def trained(name: str, variable_name: str = "layer/kernel", **options: float) -> np.ndarray:
    optimizer = make_optimizer(name, RATE, **options)
    optimizer = type(optimizer).from_config(optimizer.get_config())  # as Horovod does
    variable = tf.Variable(START, name=variable_name)
    for gradient in GRADIENTS:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    return variable.numpy()


def adam_steps(decay: float = 0.0, ratio: bool = False) -> np.ndarray:
    value, m, v = START.astype(float), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS.astype(float), 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        update = update + decay * value
        length = np.linalg.norm(value) / np.linalg.norm(update) if ratio else 1.0
        value = value - RATE * length * update
    return value


def test_adam_and_adamw():
    np.testing.assert_allclose(trained("adam"), adam_steps(), rtol=1e-3)
    np.testing.assert_allclose(trained("adamw", weight_decay=0.3), adam_steps(0.3), rtol=1e-3)
    np.testing.assert_allclose(trained("adamw"), adam_steps(OPTIMIZERS["adamw"]), rtol=1e-3)


def test_lamb_steps_are_as_long_as_the_weights():
    np.testing.assert_allclose(trained("lamb", weight_decay=0.3), adam_steps(0.3, ratio=True), rtol=1e-3)
    np.testing.assert_allclose(trained("lamb", "layer/bias", weight_decay=0.3), adam_steps(), rtol=1e-3)


def test_sgd_has_nesterov_momentum_and_decay():
    value, velocity = START.astype(float), np.zeros(3)
    for gradient in GRADIENTS.astype(float):
        value -= RATE * 0.2 * value
        velocity = 0.9 * velocity - RATE * gradient
        value += 0.9 * velocity - RATE * gradient
    np.testing.assert_allclose(trained("sgd", weight_decay=0.2), value, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_only_kernels_decay(name):
    same = trained(name, "layer/gamma", weight_decay=0.0)
    np.testing.assert_array_equal(trained(name, "layer/gamma", weight_decay=0.5), same)
    assert not np.array_equal(trained(name, weight_decay=0.5), trained(name, weight_decay=0.0))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_clipping_is_to_the_norm_of_all_gradients(name):
    variables = [tf.Variable(START, name=f"{i}/kernel") for i in range(2)]
    optimizer = make_optimizer(name, RATE, clip_norm=1.0)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    seen = []
    apply = optimizer._resource_apply_dense
    optimizer._resource_apply_dense = lambda g, v, state=None: seen.append(g.numpy()) or apply(g, v, state)
    optimizer.apply_gradients([(tf.constant(100 * START), variable) for variable in variables])
    assert np.linalg.norm(np.concatenate(seen)) == pytest.approx(1.0, rel=1e-4)
