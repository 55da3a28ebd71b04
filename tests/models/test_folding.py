"""Batch norms that are folded into convolutions compute what they did, and leave no trace in the model."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import normalise, serving_model
from models.folding import folded_batch_norms
from models.layers import BatchNormalization, Conv2D, Conv2DTranspose, DepthwiseConv2D, SeparableConv2D
from models.recompute import split
from prediction.model import with_constant_weights
from tests.helpers.toy_models import randomise, toy_deeplab, toy_efficientdet

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)


def operations(function: tf.types.experimental.ConcreteFunction) -> list[str]:
    """Return the kinds of all operations of a function and of those that it calls."""
    graph = function.graph.as_graph_def()
    return [
        node.op
        for part in (graph, *graph.library.function)
        for node in getattr(part, "node_def", None) or part.node
    ]


@pytest.mark.parametrize(("name", "build"), [("effdetd0", toy_efficientdet), ("deeplab", toy_deeplab)])
def test_a_served_network_has_no_batch_norm_and_the_same_probabilities(name, build):
    model = randomise(build(None))
    before = model.get_weights()
    expected = tf.nn.softmax(model(normalise(name, tf.constant(IMAGES)), training=False)).numpy()
    serving = serving_model(name, model)
    traced = tf.function(serving).get_concrete_function(tf.TensorSpec(IMAGES.shape, tf.uint8))
    found = operations(traced)
    assert "Conv2D" in found
    assert not [op for op in found if op.startswith("FusedBatchNorm")]
    np.testing.assert_allclose(serving(IMAGES).numpy(), expected, atol=1e-4)
    assert np.ptp(expected[..., 1]) > 0.05  # else anything would be as good
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    again = tf.nn.softmax(model(normalise(name, tf.constant(IMAGES)), training=False)).numpy()
    np.testing.assert_array_equal(again, expected)  # outside it is the model that it was


def test_models_of_its_layers_do_not_keep_a_network_from_being_folded():
    """Recomputation makes a model of each block, whose layers are those of the network."""
    model = toy_deeplab(None)
    with folded_batch_norms(model):
        before = [layer.name for layer in model.layers if getattr(layer, "folded", False)]
    split(model, lambda name: name.partition("_")[0])
    with folded_batch_norms(model):
        after = [layer.name for layer in model.layers if getattr(layer, "folded", False)]
    assert before == after != []


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(6, 1, name="conv"),
        Conv2D(6, 3, padding="same", use_bias=False, name="conv"),
        Conv2DTranspose(6, 3, strides=2, padding="same", name="conv"),
        SeparableConv2D(6, 3, padding="same", name="conv"),
        DepthwiseConv2D(3, padding="same", use_bias=False, name="conv"),
        DepthwiseConv2D(3, padding="same", dilation_rate=2, use_bias=False, name="conv"),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_each_kind_of_convolution(layer, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        images = keras.Input((None, None, 4))
        layer = type(layer).from_config(layer.get_config() | {"dtype": policy})
        model = randomise(keras.Model(images, BatchNormalization(name="norm", dtype=policy)(layer(images))))
        x = tf.constant(np.random.default_rng(1).normal(size=(2, 8, 8, 4)), tf.float32)
        expected = tf.cast(model(x, training=False), tf.float32).numpy()
        with folded_batch_norms(model):
            assert model.get_layer("norm").folded
            found = tf.cast(model(x, training=False), tf.float32).numpy()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_allclose(
        found, expected, atol=1e-4 if policy == "float32" else 0.03 * np.abs(expected).max()
    )


def test_what_others_look_at_as_well_is_not_folded():
    images = keras.Input((None, None, 3))
    x = Conv2D(4, 1, name="conv")(images)
    y = BatchNormalization(name="norm")(x)
    z = BatchNormalization(name="second")(keras.layers.Add()([x, y]))
    model = keras.Model(images, z)
    with folded_batch_norms(model):
        assert not any(model.get_layer(name).folded for name in ("norm", "second"))


def test_an_exception_while_it_is_traced_leaves_the_model_as_it_was():
    images = keras.Input((None, None, 3))
    model = keras.Model(images, BatchNormalization(name="norm")(Conv2D(4, 1, name="conv")(images)))
    with pytest.raises(KeyError), folded_batch_norms(model):
        raise KeyError
    assert not model.get_layer("norm").folded
    assert model.get_layer("conv").factors is None


def test_tensorflow_can_put_the_layers_of_residual_blocks_together(capfd):
    """With a sum that a ReLU and the next block's sum take, its optimizer gave up on the whole graph."""
    images = keras.Input((None, None, 3), name="images")
    x = Conv2D(16, 1, name="first")(images)
    for unit in range(3):
        y = x
        for part in "ab":
            y = keras.layers.Activation("relu", name=f"relu_{unit}{part}")(y)
            y = Conv2D(16, 1, use_bias=False, name=f"conv_{unit}{part}")(y)
            y = BatchNormalization(name=f"norm_{unit}{part}")(y)
        x = keras.layers.Add(name=f"add_{unit}")([y, x])
    model = randomise(keras.Model(images, Conv2D(2, 1, name="last")(x)))
    with_constant_weights(serving_model("deeplab", model), 128)(IMAGES)
    assert "remapper failed" not in capfd.readouterr().err


@pytest.mark.parametrize("trains", [True, False])  # frozen within a training step, and in validation
def test_batch_norm_of_averages_in_bfloat16_is_that_of_keras(trains):
    rng = np.random.default_rng(2)
    images, upstream = (tf.cast(rng.normal(size=(2, 9, 9, 20)), tf.bfloat16) for _ in range(2))
    results = []
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        norm = kind(dtype="mixed_bfloat16")
        norm.build(images.shape)
        norm.set_weights(np.random.default_rng(3).uniform(0.5, 1.5, (4, 20)))
        norm.trainable = False
        with tf.GradientTape() as tape:
            tape.watch([images, norm.gamma, norm.beta])
            y = norm(images, training=trains)
        results.append(
            [
                tf.cast(x, tf.float32).numpy()
                for x in (y, *tape.gradient(y, [images, norm.gamma, norm.beta], upstream))
            ]
        )
        assert y.dtype == tf.bfloat16
    for theirs, ours in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0.01)
