"""Small models for the tests: the real builders with other rows, and real ones that several files look at."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras as keras

import models
from models import catalog, deeplab, efficientnet

# Lists of the variables of the public pre-trained files.
PUBLISHED = Path(__file__).parents[1] / "models" / "published"
TOY = catalog.EfficientDetRow("efficientnet-b0", 0.25, 0.25, fpn_filters=8, fpn_cells=1, survival_prob=1.0)


def toy_efficientdet(img_size: Any = 128, num_classes: int = 2, **options: Any) -> keras.Model:
    """Return an EfficientDet with one block for each stride, a quarter of B0's width, and one thin BiFPN cell."""
    stages = [stage for i, stage in enumerate(efficientnet.STAGES) if i in (0, 1, 2, 3, 5)]
    with mock.patch.dict(catalog.MODELS, toy=TOY), mock.patch.object(efficientnet, "STAGES", stages):
        return models.build_model("toy", img_size, num_classes, **options)


def toy_deeplab(img_size: Any = 64, num_classes: int = 2, **options: Any) -> keras.Model:
    """Return a DeepLabV3+ with one unit in the middle flow."""
    with mock.patch.object(deeplab, "MIDDLE_UNITS", 1):
        return models.build_model("deeplab", img_size, num_classes, **options)


def pixelwise(name: str, img_size: Any, num_classes: int, batch_norm: Any = None, **_: Any) -> keras.Model:
    """Stands for `build_model` where any network will do: one convolution of a pixel, made in no time."""
    images = keras.Input((None, None, 3), name="images")
    x = keras.layers.Conv2D(num_classes, 1, name="logits")(images)
    return keras.Model(
        images, (batch_norm or keras.layers.BatchNormalization)(name="norm")(x), name="pixelwise"
    )


@functools.lru_cache
def real_model(name: str, num_classes: int, **options: Any) -> keras.Model:
    """Return a model of full size, which is built once for all tests that only read it or load into it."""
    return models.build_model(name, None, num_classes, **options)


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give every variable, the moving averages too, random values. Return the model."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "kernel" in variable.name:
            variable.assign(rng.normal(0, 0.2, variable.shape))
        else:  # variances, scales and fusion weights are positive
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def shapes(variables: Any) -> dict[str, list[int]]:
    """Return {name: shape} of variables."""
    return {variable.name.partition(":")[0]: list(variable.shape) for variable in variables}


def write_checkpoint(prefix: Path, values: dict[str, np.ndarray]) -> Path:
    """Write a checkpoint that knows variables by name, as TensorFlow 1 did. Return its prefix."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )
    return prefix


def missing_gradients(model: keras.Model, images: np.ndarray) -> list[str]:
    """Return the trainable variables that have no finite gradient in training mode."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(images, training=True) - 1))
    gradients = tape.gradient(loss, model.trainable_variables)
    pairs = zip(model.trainable_variables, gradients)
    return [v.name for v, g in pairs if g is None or not bool(tf.reduce_all(tf.math.is_finite(g)))]


def noise(*shape: int) -> np.ndarray:
    """Return random values that stand for normalised images."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
