"""Recomputed activations: the gradients, averages and draws of the plain model."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import build_model, deeplab, efficientdet, recompute, training_network
from models.catalog import MODELS, RECOMPUTE
from models.layers import drawing
from tests import toy_models
from tests.toy_models import randomise, real_model, toy_deeplab, toy_efficientdet
from utils.losses import make_loss

DROPPING = dataclasses.replace(toy_models.TOY, survival_prob=0.5)


def images_and_labels(size: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return images, (images[..., 0] > 127).astype(np.uint8)


def step(model: keras.Model, name: str, level: str, size: int, training: bool = True) -> dict[str, np.ndarray]:
    """Loss, gradients, and all that is not trained afterwards; the model stays as it was."""
    network, loss_of = training_network(name, model, level), make_loss("cross_entropy")

    @tf.function(autograph=False)
    def graph(images: tf.Tensor, labels: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape, drawing(tf.constant([3, 4])):
            loss = loss_of(labels, network(images, training))
        return loss, tape.gradient(loss, model.trainable_variables)

    before = model.get_weights()
    loss, gradients = graph(*images_and_labels(size))
    found = {v.name: g.numpy() for v, g in zip(model.trainable_variables, gradients)}
    found |= {v.name: v.numpy() for v in model.non_trainable_variables}
    model.set_weights(before)
    return found | {"loss": loss.numpy()}


def differences(found: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> dict[str, float]:
    """Of what differs by more than 1e-5 of the variable's largest value.

    Biases before batch norm have no gradient: what is found is rounding of the size of 1e-7.
    """
    assert found.keys() == plain.keys()
    worst = {k: np.abs(found[k] - v).max() / max(np.abs(v).max(), 1e-3) for k, v in plain.items()}
    return {name: value for name, value in worst.items() if value > 1e-5}


@pytest.fixture
def policy():
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy("float32")


TOYS = {"effdetd0": (toy_efficientdet, 128), "deeplab": (toy_deeplab, 64)}


@pytest.mark.parametrize("name", TOYS)
def test_gradients_and_averages_are_those_of_the_plain_model(name, policy):
    build, size = TOYS[name]
    policy("float64")
    with mock.patch.object(toy_models, "TOY", DROPPING):
        model = randomise(build(None))
    for training in (True, False):
        plain = step(model, name, "none", size, training)
        for level in RECOMPUTE[1:]:
            assert differences(step(model, name, level, size, training), plain) == {}
