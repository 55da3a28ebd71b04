"""Recomputed activations: the gradients, averages and draws of the plain model."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import channel_parts, deeplab, efficientdet, recompute, training_network
from models.layers import drawing
from tests.helpers import toy_models
from tests.helpers.toy_models import randomise, real_model, toy_deeplab, toy_efficientdet
from training.losses import make_loss

DROPPING = dataclasses.replace(toy_models.TOY, survival_prob=0.5)
TOYS = {"effdetd0": (toy_efficientdet, 128), "deeplab": (toy_deeplab, 32)}


@pytest.fixture
def toy(request):
    """A model in float64: biases before batch norm have no gradient, and in float32 their rounding differs."""
    build, size = TOYS[request.param]
    keras.mixed_precision.set_global_policy("float64")
    with mock.patch.object(toy_models, "TOY", DROPPING):
        yield request.param, randomise(build(None)), size
    keras.mixed_precision.set_global_policy("float32")


def step(
    name: str, model: keras.Model, level: str, size: int, training: bool = True
) -> dict[str, np.ndarray]:
    """Return loss, gradients, and all that is not trained afterwards; the model stays as it was."""
    network, loss_of = training_network(name, model, level), make_loss("cross_entropy")
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    labels = (images[..., 0] > 127).astype(np.uint8)

    @tf.function(autograph=False)
    def graph() -> tuple:
        with tf.GradientTape() as tape, drawing(tf.constant([3, 4])):
            loss = loss_of(labels, network(tf.constant(images), training))
        return loss, tape.gradient(loss, model.trainable_variables)

    before = model.get_weights()
    loss, gradients = graph()
    found = {v.name: g.numpy() for v, g in zip(model.trainable_variables, gradients)}
    found |= {v.name: v.numpy() for v in model.non_trainable_variables}
    model.set_weights(before)
    return found | {"loss": loss.numpy()}


def assert_equal(found: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> None:
    """To 1e-5 of each variable's largest value; logits and loss are float32."""
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * max(np.abs(value).max(), 1e-4))


@pytest.mark.parametrize("toy", TOYS, indirect=True)
def test_gradients_averages_and_draws_are_those_of_the_plain_model(toy):
    plain = step(toy[0], toy[1], "none", toy[2])
    assert_equal(step(toy[0], toy[1], "blocks", toy[2]), plain)


@pytest.fixture
def exact():
    """Nothing changes the order of sums: neither TensorFlow's optimizer of graphs nor the parts of an expansion.

    DeepLab has no dilated branches, whose gradients are added up in another order when their block runs by itself.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with (
        mock.patch.dict(deeplab.ATROUS, {16: (2, 1, 1, 2, ())}),
        mock.patch.object(channel_parts, "PARTS", 1),
    ):
        yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_every_variable_has_the_same_gradient_to_the_bit_in_every_precision(toy, policy, exact):
    """In mixed precision Keras hands out variables as other objects: 192 of D0's 423 had no gradient."""
    build, size = TOYS[toy]
    keras.mixed_precision.set_global_policy(policy)
    model = randomise(build(None))
    plain = step(toy, model, "none", size)
    for level in ("blocks", "full"):
        found = step(toy, model, level, size)
        assert found.keys() == plain.keys()
        assert [name for name in plain if found[name].tobytes() != plain[name].tobytes()] == []


def test_a_missing_gradient_raises(monkeypatch):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    monkeypatch.setattr(recompute, "_key", lambda variable: variable.ref())  # as it was
    try:
        with pytest.raises(RuntimeError, match="recomputation gives no gradient for"):
            step("effdetd0", randomise(toy_efficientdet(None)), "blocks", 128)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS, indirect=True)
@pytest.mark.parametrize("training", [True, False])
def test_all_levels_are_equal_also_with_frozen_averages(toy, training):
    plain = step(toy[0], toy[1], "none", toy[2], training)
    for level in ("blocks", "full"):
        assert_equal(step(toy[0], toy[1], level, toy[2], training), plain)


@pytest.mark.parametrize("name", ["effdetd0", "deeplab"])
def test_each_layer_is_in_one_block_and_blocks_are_in_order(name):
    model = real_model(name, 2)
    blocks = recompute.split(model, (deeplab if name == "deeplab" else efficientdet).block_of)
    layers = [
        layer.name for block in blocks for layer in block.model.layers if not layer.name.startswith("input_")
    ]
    layers = [name for name in layers if name != "images"]
    assert sorted(layers) == sorted(layer.name for layer in model.layers[1:])
    there = {"images"}
    for block in blocks:
        assert there.issuperset(block.inputs)
        there.update(block.outputs)
    assert len(blocks) > 20


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("effdetd0", "efficientnet-b0/blocks_1/depthwise_conv2d"),
        ("effdetd4", "efficientnet-b4/blocks_2/depthwise_conv2d"),
        ("deeplab", None),
    ],
)
def test_the_first_expansion_is_a_block_whose_channels_are_computed_in_parts(name, last):
    model = real_model(name, 2)
    blocks = recompute.split(model, (deeplab if name == "deeplab" else efficientdet).block_of)
    parts = {block.outputs[0]: block.parts for block in blocks if block.parts != [channel_parts.WHOLE]}
    assert list(parts) == ([last] if last else [])
    for channels in parts.values():
        covered = [i for part in channels for i in range(part.start, part.stop)]
        assert covered == list(range(model.get_layer(last).output.shape[-1]))
        assert len(channels) == 3


def test_a_layer_of_no_block_is_an_error():
    for module in (efficientdet, deeplab):
        with pytest.raises(ValueError, match="surprise is in no block"):
            module.block_of("surprise")
