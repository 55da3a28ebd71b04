"""Layers that the models share."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models import kernels, pixel_moments

Norm = Callable[..., keras.layers.Layer]  # norm(name=...) makes a batch normalization layer


def conv_bn_act(
    x: tf.Tensor, conv: keras.layers.Layer, norm: Norm, bn_name: str, activation: str | None = None
) -> tf.Tensor:
    """Apply convolution, batch normalization and activation, in this order. (B, H, W, C) → (B, H', W', C')"""
    x = norm(name=bn_name)(conv(x))
    return act(x, activation, bn_name) if activation else x


def act(x: tf.Tensor, activation: str, prefix: str) -> tf.Tensor:
    """Apply the activation ("swish", "relu") as a layer with the name `<prefix>_<activation>`. Shape is kept."""
    layer = Swish if activation == "swish" else functools.partial(keras.layers.Activation, activation)
    return layer(name=f"{prefix}_{activation}")(x)


def float32(x: tf.Tensor, name: str) -> tf.Tensor:
    """Casts to float32, whatever the policy of mixed precision: logits and loss need the range."""
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


_draws: list[tf.Tensor] = []  # the seed of the step that is being traced


@contextlib.contextmanager
def drawing(seed: tf.Tensor) -> Iterator[None]:
    """Make `Dropout`'s draws inside of the `with` block a function of `seed`, int32 (2,), and the layer's name.

    So a resumed run draws what it would have drawn, and recomputed activations are the same.
    """
    _draws.append(seed)
    try:
        yield
    finally:
        _draws.pop()


def current_draw() -> tf.Tensor:
    """Return the seed of `drawing`, or one for this step if there is none."""
    return _draws[-1] if _draws else tf.random.uniform((2,), maxval=2**31 - 1, dtype=tf.int32)


@keras.utils.register_keras_serializable("models")
class Swish(keras.layers.Layer):
    """Swish of any shape, with a gradient that is fast on CPUs."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return kernels.swish(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class Convolution(keras.layers.Layer):
    """A convolution whose kernel and bias may do what the batch norm after it would, see `models.folding`."""

    factors: Callable[[], tf.Tensor] | None = None  # float32 (C,) of the channels that it gives

    def scaled(self, weights: tf.Tensor, *shape: int) -> tf.Tensor:
        """Return weights times the factors, if there are some. `shape` puts these onto the weights' channels."""
        if self.factors is None:
            return weights
        return tf.cast(tf.cast(weights, tf.float32) * tf.reshape(self.factors(), shape), weights.dtype)


@keras.utils.register_keras_serializable("models")
class Conv2D(Convolution, keras.layers.Conv2D):
    """Keras's own without activation, but with gradients of 1x1 kernels that are fast, and of biases that are right."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel = self.scaled(self.kernel, -1)
        if self.kernel_size == self.strides == (1, 1):
            x = kernels.pointwise_conv2d(inputs, kernel)
        else:
            x = self.convolution_op(inputs, kernel)
        return kernels.bias_add(x, self.scaled(self.bias, -1)) if self.use_bias else x


@keras.utils.register_keras_serializable("models")
class Conv2DTranspose(Convolution, keras.layers.Conv2DTranspose):
    """Keras's own with padding "same", without dilation and activation, but with gradients of biases that are right."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(inputs)
        size = [shape[0], shape[1] * self.strides[0], shape[2] * self.strides[1], self.filters]
        kernel = self.scaled(self.kernel, -1, 1)
        x = tf.nn.conv2d_transpose(inputs, kernel, tf.stack(size), self.strides, "SAME")
        x.set_shape(self.compute_output_shape(inputs.shape))
        return kernels.bias_add(x, self.scaled(self.bias, -1)) if self.use_bias else x


@keras.utils.register_keras_serializable("models")
class GlobalAveragePooling2D(keras.layers.GlobalAveragePooling2D):
    """Keras's own with `keepdims`, but with a gradient that is fast, and right for many pixels in float16."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return kernels.global_mean(inputs)


@keras.utils.register_keras_serializable("models")
class SeparableConv2D(Convolution, keras.layers.SeparableConv2D):
    """Keras's own without stride, dilation and activation, but with gradients that are fast on CPUs."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = kernels.depthwise_conv2d(inputs, self.depthwise_kernel, 1, self.padding.upper())
        x = kernels.pointwise_conv2d(x, self.scaled(self.pointwise_kernel, -1))
        return kernels.bias_add(x, self.scaled(self.bias, -1)) if self.use_bias else x


@keras.utils.register_keras_serializable("models")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's own, but fast on CPUs, also for numbers of channels that oneDNN has no fast code for.

    If it is `folded` (`models.folding`), the convolution before it multiplies, and it only adds; `apart` keeps what it
    gives from being put together with what follows.
    """

    folded = apart = False

    def factors(self) -> tf.Tensor:
        """Return what it multiplies with in inference mode: float32 (C,)."""
        return self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        if self.folded:
            shift = self.beta - self.moving_mean * self.factors()
            y = kernels.bias_add(inputs, tf.cast(shift, inputs.dtype))
            return tf.ensure_shape(y, y.shape) if self.apart else y
        own, learns = kernels.own_batch_norm(inputs), training and self.trainable
        large = learns and not own and pixel_moments.is_large(inputs) and not kernels.on_gpu()
        if not own and not large:
            return super().call(inputs, training=training)
        if not learns:
            averages = self.moving_mean, self.moving_variance
            return kernels.frozen_batch_norm(inputs, self.gamma, self.beta, *averages, self.epsilon)
        if large:
            pixels, local = inputs.shape[:-1].num_elements(), pixel_moments.local_moments
            y, mean, variance = pixel_moments.normalise(
                inputs, self.gamma, self.beta, self.epsilon, local, tf.identity, pixels
            )
        else:
            y, mean, variance = kernels.batch_norm(inputs, self.gamma, self.beta, self.epsilon)
        # As Keras's fused kernel, the average is of the variance of all the images that there are.
        pixels = tf.cast(tf.size(inputs) / inputs.shape[-1], variance.dtype)
        variance *= pixels / tf.maximum(pixels - 1, 1)
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            self.add_update(functools.partial(_move, average, (new - average) * (1 - self.momentum)))
        return y


def _move(average: tf.Variable, by: tf.Tensor) -> tf.Operation:
    """Move a moving average. Where a block runs again in parts (`models.channel_parts`) it is a tensor, and stays."""
    return average.assign_add(by)


@keras.utils.register_keras_serializable("models")
class DepthwiseConv2D(Convolution, keras.layers.DepthwiseConv2D):
    """Keras's own, but with gradients that are fast on CPUs. Without bias and activation."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel = self.scaled(self.depthwise_kernel, -1, 1)
        if self.dilation_rate != (1, 1):
            return kernels.dilated_depthwise_conv2d(inputs, kernel, self.dilation_rate, self.padding.upper())
        return kernels.depthwise_conv2d(inputs, kernel, self.strides[0], self.padding.upper())


@keras.utils.register_keras_serializable("models")
class Dropout(keras.layers.Dropout):
    """Keras's own, but without hidden state within `drawing`."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or not _draws:
            return super().call(inputs, training=training)
        seed = tf.random.experimental.stateless_fold_in(_draws[-1], zlib.crc32(self.name.encode()) >> 1)
        return tf.nn.experimental.stateless_dropout(
            inputs, self.rate, seed=seed, noise_shape=self._get_noise_shape(inputs)
        )


@keras.utils.register_keras_serializable("models")
class FastFusion(keras.layers.Layer):
    """Fast normalised fusion (arXiv 1911.09070, section 3.3): Σ relu(w)·x / (Σ relu(w) + 1e-4), scalar w.

    The weights are named as published (WSM, WSM_1, WSM_2) and stay float32 in mixed precision.
    """

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        names = ["WSM" if i == 0 else f"WSM_{i}" for i in range(len(input_shape))]
        self.wsm = [
            self.add_weight(name=name, shape=(), initializer="ones", experimental_autocast=False)
            for name in names
        ]
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        weights = [tf.nn.relu(weight) for weight in self.wsm]
        total = tf.add_n(weights) + 1e-4
        return tf.add_n([x * tf.cast(weight / total, x.dtype) for x, weight in zip(inputs, weights)])

    def compute_output_shape(self, input_shape: list[Any]) -> Any:
        return input_shape[0]
