"""What a rank sends, counted from the forward pass, is what its whole step sends."""

from __future__ import annotations

import pytest
import tensorflow as tf
import tf_keras as keras

from models import channel_parts, layers, recompute
from models.recompute import Recomputed
from models.spatial.network import spatial_runner
from models.spatial.traffic import sent_forward, sent_in_step
from utils.ranks.lone_member import LoneMember

RANKS = 4


def blocks(count: int) -> keras.Model:
    """Return a network of convolutions, the first with a stride, and of batch norms and a mean over all pixels."""
    images = x = keras.Input((None, None, 3))
    for i in range(count):
        x = keras.layers.Conv2D(2, 3, 1 if i else 2, padding="same", use_bias=False, name=f"{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{i}_norm")(x)
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="last_mean")(x)
    return keras.Model(images, keras.layers.Multiply(name="last_product")([x, mean]))


def expanding() -> keras.Model:
    """Return a network whose expansion runs again in parts."""
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 1, use_bias=False, name="0_conv")(images)
    x = layers.BatchNormalization(name="0_norm")(x)
    x = layers.Swish(name="0_swish")(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False, name="0_depthwise")(x)
    return keras.Model(images, keras.layers.Conv2D(2, 3, padding="same", name="1_conv")(x))


def test_a_convolution_sends_a_row_to_each_neighbour_and_a_batch_norm_its_moments_to_all():
    sent = sent_forward(blocks(2), 64, 5, RANKS)
    # With stride 2 and an even size a convolution reads a row below, but none above.
    assert sent == {
        "0_conv": [1 * 5 * 64 * 3 * 4],
        "0_norm.moments": [3 * 2 * 2 * 4],
        "1_conv": [2 * 5 * 32 * 2 * 4],
        "1_norm.moments": [3 * 2 * 2 * 4],
        "last_mean.sum": [3 * 5 * 2 * 4],
    }
    assert sent_forward(blocks(2), 64, 5, 1) == {}


def step_of(model: keras.Model, size: int, level: str) -> dict[str, list[int]]:
    """Return what a rank sends in all of a step."""
    member = LoneMember.inside(RANKS)
    run = spatial_runner(model, size, member)
    network = run
    if level != "none":
        network = Recomputed(model, lambda name: name.partition("_")[0], tf.identity, level == "full", run)

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            y = network(images, True) if level != "none" else run(model, images, True)
        return tape.gradient(y, model.trainable_variables)

    step.get_concrete_function(tf.TensorSpec((5, size // RANKS, size, 3)))
    return dict(member.sent)


@pytest.mark.parametrize("level", ["none", "blocks", "full"])
def test_the_forward_pass_and_the_names_of_a_small_step_tell_what_a_step_sends(level, monkeypatch):
    monkeypatch.setattr(recompute, "PART", 1)
    model = blocks(3)
    small, step = step_of(model, 64, level), step_of(model, 256, level)
    assert len(step["0_conv"]) == 1  # what came is kept where activations are computed again
    sent, count = sent_in_step(sent_forward(model, 256, 5, RANKS), small)
    assert sent == sum(map(sum, step.values()))
    assert count == sum(map(len, step.values()))


def test_gradients_that_go_in_parts_are_counted_as_parts():
    model = expanding()
    small, step = step_of(model, 64, "blocks"), step_of(model, 256, "blocks")
    assert len(step["0_depthwise_back"]) == channel_parts.PARTS
    sent, count = sent_in_step(sent_forward(model, 256, 5, RANKS), small)
    assert sent == sum(map(sum, step.values()))
    assert count == sum(map(len, step.values()))
