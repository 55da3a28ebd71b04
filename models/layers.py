"""Layers that the models share."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

Norm = Callable[..., keras.layers.Layer]  # norm(name=...) makes a batch normalization layer


def conv_bn_act(
    x: tf.Tensor, conv: keras.layers.Layer, norm: Norm, bn_name: str, activation: str | None = None
) -> tf.Tensor:
    """Apply convolution, batch normalization and activation, in this order. (B, H, W, C) → (B, H', W', C')"""
    x = norm(name=bn_name)(conv(x))
    return act(x, activation, bn_name) if activation else x


def act(x: tf.Tensor, activation: str, prefix: str) -> tf.Tensor:
    """Apply the activation ("swish", "relu") as a layer with the name `<prefix>_<activation>`. Shape is kept."""
    return keras.layers.Activation(activation, name=f"{prefix}_{activation}")(x)


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
