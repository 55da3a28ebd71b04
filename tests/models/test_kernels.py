"""The gradients of models.kernels against TensorFlow's own, and sums that TensorFlow gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import kernels, layers, pixel_moments

TOLERANCE = {tf.float64: 1e-12, tf.float32: 1e-5, tf.bfloat16: 1e-2, tf.float16: 2e-3}
TYPES = [tf.float64, tf.float32, tf.bfloat16]


def noise(shape: tuple[int, ...], dtype: tf.DType, seed: int = 0) -> tf.Tensor:
    return tf.cast(np.random.default_rng(seed).normal(0.5, 1, shape), dtype)


def gradients(function: Callable[..., tf.Tensor], *inputs: tf.Tensor) -> list[np.ndarray]:
    """Return the value and the gradients, for an upstream gradient that is noise."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    found = tape.gradient(y, inputs, noise(y.shape, y.dtype, 1))
    return [tf.cast(x, tf.float64).numpy() for x in (y, *found)]


def slide(rows: int, dtype: tf.DType) -> tuple[tf.Tensor, np.ndarray]:
    """Return a map (1, rows, 1024, 16) of which nine tenths are glass, and its first channel in float64."""
    content = np.full((1, rows, 1024, 16), 1.2, np.float32)
    content[:, : rows // 10] = np.random.default_rng(0).normal(0.6, 0.5, (rows // 10, 1024, 16))
    x = tf.cast(content, dtype)
    return x, tf.cast(x[..., 0], tf.float64).numpy()


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_batch_norm_of_a_large_map_has_its_mean_and_variance(dtype: tf.DType) -> None:
    """TensorFlow's fused kernel is off by more than a tenth of the standard deviation here."""
    x, expected = slide(1100, dtype)
    assert pixel_moments.is_large(x)
    assert not pixel_moments.is_large(x[:, :512])
    policy = "mixed_bfloat16" if dtype == tf.bfloat16 else "float32"
    layer = layers.BatchNormalization(momentum=0.0, dtype=policy)
    y = layer(x, training=True)
    deviation = expected.std()
    assert float(layer.moving_mean[0]) == pytest.approx(expected.mean(), abs=3e-3 * deviation)
    assert float(layer.moving_variance[0]) == pytest.approx(expected.var(), rel=1e-3)
    normalised = (expected - expected.mean()) / np.sqrt(expected.var() + layer.epsilon)
    tolerance = 0.02 if dtype == tf.bfloat16 else 1e-3
    assert (
        np.abs(tf.cast(y[..., 0], tf.float64).numpy() - normalised).max()
        < tolerance * np.abs(normalised).max()
    )
    mean, variance = pixel_moments.local_moments(x)  # of a rank that shares the patch
    assert float(mean[0]) == pytest.approx(expected.mean(), abs=3e-3 * deviation)
    assert float(variance[0]) == pytest.approx(expected.var(), rel=1e-3)


def test_the_gradient_of_batch_norm_of_a_large_map_is_that_of_a_small_one() -> None:
    x, _ = slide(1100, tf.float32)
    layer = layers.BatchNormalization()
    layer.build(x.shape)
    upstream = tf.cast(np.random.default_rng(1).normal(0, 1, x.shape), tf.float32)
    found = []
    for limit in (1 << 19, 1 << 30):
        with mock.patch.object(pixel_moments, "LARGE", limit), tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x * 100, training=True)  # little glass, whose sums are inexact in the fused kernel
        found.append(tape.gradient(y, [x, layer.gamma, layer.beta], upstream))
    for mine, theirs in zip(*found):
        assert np.linalg.norm(mine - theirs) < 0.05 * np.linalg.norm(theirs)


def expect_same(ours: Callable[..., tf.Tensor], other: Callable[..., tf.Tensor], *inputs: tf.Tensor) -> None:
    """Compare with `other` in at least float32, of the same numbers."""
    dtype = inputs[0].dtype
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    expected = gradients(other, *(tf.cast(x, wide) for x in inputs))
    for mine, theirs in zip(gradients(ours, *inputs), expected, strict=True):
        assert mine.shape == theirs.shape
        assert np.linalg.norm(mine - theirs) <= TOLERANCE[dtype] * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", TYPES)
def test_swish(dtype: tf.DType) -> None:
    expect_same(kernels.swish, lambda x: x * tf.sigmoid(x), noise((2, 5, 7, 3), dtype) * 4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)])
def test_depthwise_convolution(kernel: int, stride: int, padding: str, dtype: tf.DType) -> None:
    for size in ((15, 18), (16, 17)):
        x, w = noise((2, *size, 8), dtype), noise((kernel, kernel, 8, 1), dtype, 2)
        expect_same(
            lambda x, w: kernels.depthwise_conv2d(x, w, stride, padding),
            lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, stride, stride, 1], padding),
            x,
            w,
        )


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_filters_gradient_in_bfloat16_is_added_up_over_many_pixels(kernel: int, rate: int) -> None:
    # Numbers of one sign: a sum in bfloat16 stops to grow at 256 times its terms, on CPUs that add up so.
    x, w = abs(noise((1, 128, 128, 8), tf.bfloat16)), noise((kernel, kernel, 8, 1), tf.bfloat16, 2)
    upstream = abs(noise((1, 128, 128, 8), tf.bfloat16, 1))

    def ours(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        if rate > 1:
            return kernels.dilated_depthwise_conv2d(x, w, (rate, rate), "SAME")
        return kernels.depthwise_conv2d(x, w, 1, "SAME")

    def theirs(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME", dilations=[rate, rate])

    def gradient(function: Callable[..., tf.Tensor], dtype: tf.DType) -> np.ndarray:
        with tf.GradientTape() as tape:
            tape.watch(wide := tf.cast(w, dtype))
            y = function(tf.cast(x, dtype), wide)
        return tf.cast(tape.gradient(y, wide, tf.cast(upstream, dtype)), tf.float32).numpy()

    expected = gradient(theirs, tf.float32)
    assert np.linalg.norm(gradient(ours, tf.bfloat16) - expected) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_pointwise_convolution_and_bias(dtype: tf.DType) -> None:
    x, w, b = noise((2, 5, 6, 8), dtype), noise((1, 1, 8, 3), dtype, 2), noise((3,), dtype, 3)
    expect_same(kernels.pointwise_conv2d, lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), x, w)
    expect_same(kernels.bias_add, tf.nn.bias_add, noise((2, 5, 6, 3), dtype), b)


@pytest.mark.parametrize("dtype", TYPES)
def test_global_mean(dtype: tf.DType) -> None:
    expect_same(
        kernels.global_mean, lambda x: tf.reduce_mean(x, [1, 2], keepdims=True), noise((2, 5, 6, 8), dtype)
    )


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("channels", [24, 728])
def test_batch_norm(channels: int, dtype: tf.DType) -> None:
    x, gamma, beta = (
        noise((2, 9, 8, channels), dtype),
        noise((channels,), tf.float32),
        noise((channels,), tf.float32),
    )

    def by_hand(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    expect_same(lambda *t: kernels.batch_norm(*t, 1e-3)[0], by_hand, x, gamma, beta)
    _, mean, variance = kernels.batch_norm(x, gamma, beta, 1e-3)
    exact = tf.cast(x, tf.float64).numpy().reshape(-1, channels)
    np.testing.assert_allclose(mean, exact.mean(0), atol=1e-5)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-4)


def test_moving_averages_are_those_of_keras_where_pixels_are_few() -> None:
    """As of a coarse level of a small patch: there the two estimates of a variance differ by a third."""
    x = noise((1, 2, 2, 24), tf.bfloat16)
    ours, keras_s = (
        kind(dtype="mixed_bfloat16") for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
    )
    for layer in (ours, keras_s):
        layer(x, training=True)
    for mine, theirs in zip(ours.get_weights(), keras_s.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    before = ours.get_weights()
    ours.trainable = False
    ours(x, training=True)
    for mine, theirs in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_gradient_of_a_bias_does_not_stand_still_in_bfloat16() -> None:
    """TensorFlow's sum of many bfloat16 numbers ends where one more no longer changes it."""
    x, b = tf.ones((1, 256, 256, 2), tf.bfloat16), tf.zeros((2,), tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(b)
        y = kernels.bias_add(x, b)
    np.testing.assert_allclose(tf.cast(tape.gradient(y, b), tf.float32), [65536, 65536], rtol=0.01)


def test_the_mean_of_many_float16_pixels_has_a_gradient() -> None:
    """65,536 is no float16: divided by it, everything is 0."""
    x = tf.fill((1, 256, 512, 1), tf.constant(2, tf.float16))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = kernels.global_mean(x)
    assert y.numpy().item() == 2
    gradient = tape.gradient(y, x, tf.fill(y.shape, tf.constant(128, tf.float16)))
    np.testing.assert_allclose(gradient, 128 / 2**17, rtol=0.01)


def test_on_gpus_the_operations_are_tensorflow_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What XLA compiles, and what is cut in pieces, is for oneDNN only."""
    monkeypatch.setattr(kernels, "on_gpu", lambda: True)

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        w = tf.ones((5, 5, 8, 1))
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = kernels.depthwise_conv2d(kernels.swish(x), w, 1, "SAME")
        return tape.gradient(y, [x, w])

    kinds = [op.type for op in step.get_concrete_function(tf.zeros((1, 16, 16, 8))).graph.get_operations()]
    assert kinds.count("DepthwiseConv2dNativeBackpropFilter") == 1
    assert not any("PartitionedCall" in kind for kind in kinds)
