"""The registry, and what all models have in common."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from models import build_model, guess_model, load_weights, multiple_of, normalise, serving_model
from tests.helpers.toy_models import keras, missing_gradients, noise, toy_deeplab, toy_efficientdet

TOYS = {"effdetd0": toy_efficientdet, "deeplab": toy_deeplab}
SIDES = {"effdetd0": 128, "deeplab": 64}  # small, as half precision is slow on a CPU


def test_the_catalogue_loads_without_tensorflow():
    code = "import sys, models; models.multiple_of('deeplab'); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "unknown; there are effdetd0"),
        ("effdetd0", {"img_size": 200}, "200 x 200 is no multiple of 128"),
        ("effdetd0", {"img_size": (128, 0)}, "128 x 0"),
        ("effdetd0", {"fpn_min_level": 4}, "fpn_min_level 4"),
        ("effdetd0", {"fpn_cells": 0}, "fpn_cells 0"),
        ("effdetd0", {"num_classes": 1}, "num_classes is 1"),
        ("deeplab", {"output_stride": 32}, "output_stride 32"),
    ],
)
def test_what_cannot_be_built_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **options)


def test_sizes_must_fit_the_pyramid():
    assert multiple_of("effdetd4") == 128
    assert multiple_of("deeplab") == 1


@pytest.mark.parametrize("name", TOYS)
def test_every_trainable_variable_has_a_gradient_with_batch_1(name):
    model = TOYS[name](SIDES[name])
    assert missing_gradients(model, noise(1, SIDES[name], SIDES[name], 3)) == []


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("size", [2048, (256, 1024)])
def test_logits_are_at_full_resolution(name, size):
    height, width = (size, size) if isinstance(size, int) else size
    assert TOYS[name](size, 3).output_shape == (None, height, width, 3)


@pytest.mark.parametrize("name", TOYS)
def test_a_model_of_any_size_takes_any_size(name):
    model = TOYS[name](None)
    assert model(noise(1, 128, 256, 3)).shape == (1, 128, 256, 2)
    assert model(noise(2, 256, 128, 3)).shape == (2, 256, 128, 2)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_variables_logits_and_gradients_whole(name, policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = TOYS[name](SIDES[name])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.layers[4].compute_dtype == policy.removeprefix("mixed_")
    images = noise(1, SIDES[name], SIDES[name], 3)
    logits = model(images)
    assert logits.dtype == tf.float32
    assert {v.dtype for v in model.variables} == {tf.float32}
    assert missing_gradients(model, images) == []


@pytest.mark.parametrize("name", TOYS)
def test_batch_norm_is_made_by_the_given_class_with_the_given_momentum(name):
    class OtherBatchNorm(keras.layers.BatchNormalization):
        pass

    model = TOYS[name](SIDES[name], batch_norm=OtherBatchNorm, bn_momentum=0.9)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) > 10
    assert {(type(norm), norm.momentum) for norm in norms} == {(OtherBatchNorm, 0.9)}


def test_normalisation_is_each_models_own():
    pixels = np.array([[[[0, 127, 255]]]], np.uint8)
    np.testing.assert_allclose(normalise("deeplab", pixels)[0, 0, 0], [-1, -0.00392157, 1], atol=1e-6)
    expected = (np.array([0, 127 / 255, 1]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalise("effdetd0", pixels)[0, 0, 0], expected, atol=1e-5)


def test_the_exported_model_gives_probabilities_and_its_weights_load(tmp_path):
    model = toy_efficientdet(None, 3, fpn_min_level=3)
    serving = serving_model("effdetd0", model)
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    expected = tf.nn.softmax(model(normalise("effdetd0", images)))
    np.testing.assert_allclose(serving(images), expected, atol=1e-6)
    serving.export(tmp_path / "model")
    exported = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(exported.serve(images), expected, atol=1e-6)
    assert guess_model(tmp_path / "model") == "effdetd0"
    assert load_weights(model, tmp_path / "model").random == ()
    np.testing.assert_allclose(serving(images), expected, atol=1e-6)
