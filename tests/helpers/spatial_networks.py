"""Networks for tests of one network on several ranks: in float64, the logits too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import tensorflow as tf
import tf_keras as keras

from models import build_model, deeplab, efficientdet, training_network
from models.deeplab import ResizeLike
from models.layers import Dropout, FastFusion
from models.recompute import Recomputed
from models.spatial.network import Spatial
from tests.helpers import toy_models
from tests.helpers.toy_models import randomise, toy_deeplab, toy_efficientdet

layers = keras.layers
CLASSES = 3
DROPPING = dataclasses.replace(toy_models.TOY, survival_prob=0.5)


def every_layer(size: None, classes: int) -> keras.Model:
    """Return a thin network of every kind of layer that the models have, in blocks a, b, …; sides multiples of 16."""
    images = keras.Input((size, size, 3), name="images")
    x = layers.Conv2D(6, 5, strides=2, padding="same", name="a/conv")(images)  # 1/2
    x = layers.BatchNormalization(momentum=0.9, name="a/norm")(x)
    skip = layers.Activation("swish", name="a/swish")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="b/max_pool")(skip)  # 1/4
    y = layers.SeparableConv2D(6, 3, padding="same", activation="tanh", name="b/separable")(x)
    x = FastFusion(name="b/fusion")([x, y])
    y = layers.ZeroPadding2D(2, name="c/pad")(x)
    # TensorFlow has no strides with dilation for depthwise convolutions; "valid" after a padding is what DeepLab has.
    y = layers.DepthwiseConv2D(5, strides=2, padding="valid", name="c/depthwise")(y)  # 1/8
    y = layers.BatchNormalization(momentum=0.9, name="c/norm")(y)
    z = layers.Conv2D(6, 1, strides=2, padding="valid", name="c/shortcut")(x)
    x = layers.Add(name="c/add")([y, z])
    y = layers.DepthwiseConv2D(3, dilation_rate=6, padding="same", name="d/dilated")(x)
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="d/mean")(y)
    pooled = layers.BatchNormalization(momentum=0.9, name="d/norm")(
        layers.Conv2D(6, 1, name="d/conv")(pooled)
    )
    y = layers.Multiply(name="d/excite")([y, layers.Activation("sigmoid", name="d/sigmoid")(pooled)])
    y = Dropout(0.5, noise_shape=(None, 1, 1, 1), name="d/depth")(y)
    x = layers.Add(name="d/add")([x, y, ResizeLike(name="d/like")([pooled, x])])
    x = Dropout(0.3, name="d/dropout")(x)
    low = layers.MaxPooling2D(3, strides=2, padding="same", name="e/max_pool")(x)  # 1/16
    low = layers.SeparableConv2D(6, 3, padding="same", name="e/separable")(low)
    low = layers.UpSampling2D(2, interpolation="nearest", name="e/up")(low)
    x = layers.Concatenate(name="e/concat")([x, low])
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="f/transposed")(x)  # 1/4
    x = ResizeLike(name="f/like")([x, skip])  # 1/2
    x = layers.Concatenate(name="f/concat")([x, skip])
    x = layers.Conv2D(classes, 3, padding="same", dilation_rate=2, name="f/conv")(x)
    return keras.Model(images, layers.UpSampling2D(2, interpolation="bilinear", name="g/logits")(x))


def _real(name: str) -> Callable[..., keras.Model]:
    return lambda size, classes, **options: build_model(name, size, classes, **options)


def _block(layer: str) -> str:
    return layer.partition("/")[0]


# How a network is built, its width, the model whose normalisation it has, and its blocks.
NETWORKS: dict[str, tuple[Callable[..., keras.Model], int, str, Callable[[str], str]]] = {
    "every_layer": (every_layer, 32, "effdetd0", _block),
    "effdet": (toy_efficientdet, 128, "effdetd0", efficientdet.block_of),
    "deeplab": (toy_deeplab, 32, "deeplab", deeplab.block_of),
    "effdetd0": (_real("effdetd0"), 128, "effdetd0", efficientdet.block_of),
    "real_deeplab": (_real("deeplab"), 64, "deeplab", deeplab.block_of),
}


def build(network: str, policy: str, **options: Any) -> keras.Model:
    """Return a network with random weights that computes in `policy`; in float64 its logits are float64 too."""
    keras.mixed_precision.set_global_policy(policy)
    with mock.patch.object(toy_models, "TOY", DROPPING):
        model = randomise(NETWORKS[network][0](None, CLASSES, **options))
    keras.mixed_precision.set_global_policy("float32")
    for layer in model.layers if policy == "float64" else ():
        layer._set_dtype_policy("float64")  # those of the logits are asked for in float32
    return model


def on_strips(
    network: str, model: keras.Model, recompute: str, spatial: Spatial
) -> Callable[[tf.Tensor, bool], tf.Tensor]:
    """Return what `models.training_network` returns, for networks that are not in the catalog as well."""
    _, _, name, block_of = NETWORKS[network]
    if recompute == "none" or block_of is not _block:
        return training_network(name, model, recompute, spatial)
    return Recomputed(model, block_of, lambda x: tf.cast(x, tf.float32) / 255, recompute == "full", spatial)
