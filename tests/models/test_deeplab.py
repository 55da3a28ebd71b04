"""DeepLabV3+: the public file's layers, and details that parity hangs on."""

import json

import numpy as np
import tensorflow as tf

from models.deeplab import ATROUS, ResizeLike
from tests.helpers.toy_models import PUBLISHED, noise, randomise, real_model, toy_deeplab


def as_lists(value):
    return list(value) if isinstance(value, tuple) else value


def test_layers_are_those_of_the_public_file():
    layout = json.loads((PUBLISHED / "deeplabv3_xception_h5_layout.json").read_text())
    layers = [layer for layer in real_model("deeplab", 21).layers if layer.weights]
    assert [layer.name for layer in layers] == [entry["layer"] for entry in layout["layers"]]
    for layer, entry in zip(layers, layout["layers"]):
        weights = [[v.name.rpartition("/")[2].partition(":")[0], list(v.shape)] for v in layer.weights]
        assert weights == entry["weights"]
        assert {key: as_lists(layer.get_config()[key]) for key in entry["config"]} == entry["config"]


def test_parameters_of_the_whole():
    assert real_model("deeplab", 21).count_params() == 41_258_213


def test_output_stride_8_has_the_same_weights_and_twice_the_rates():
    coarse, fine = toy_deeplab(64, output_stride=16), toy_deeplab(64, output_stride=8)
    assert [v.shape for v in coarse.variables] == [v.shape for v in fine.variables]
    assert coarse.get_layer("aspp0").output.shape[1] == 4
    assert fine.get_layer("aspp0").output.shape[1] == 8
    for stride, model in ((16, coarse), (8, fine)):
        rates = tuple(model.get_layer(f"aspp{i}_depthwise").dilation_rate[0] for i in (1, 2, 3))
        assert rates == ATROUS[stride][-1]


def test_weights_fit_every_size():
    fixed, free = toy_deeplab((64, 96)), toy_deeplab(None)
    free.set_weights(randomise(fixed).get_weights())
    images = noise(1, 64, 96, 3)
    np.testing.assert_allclose(free(images), fixed(images), rtol=1e-5)
    assert free(noise(1, 65, 97, 3)).shape == (1, 65, 97, 2)


def test_resizing_aligns_corners():
    x = tf.reshape([0.0, 1.0, 2.0], (1, 1, 3, 1))
    wide = ResizeLike()([x, tf.zeros((1, 2, 5, 7))])
    np.testing.assert_allclose(wide[0, 0, :, 0], [0, 0.5, 1, 1.5, 2])
    half = ResizeLike(dtype="float16")([tf.cast(x, tf.float16), tf.zeros((1, 2, 5, 7), tf.float16)])
    assert half.dtype == tf.float16


def test_image_pooling_shows_the_mean_to_every_pixel():
    pooled = toy_deeplab(64).get_layer("image_pooling_resize").output
    assert pooled.shape[1:] == (4, 4, 256)
