"""Operations whose gradients TensorFlow computes slowly or wrongly on CPUs, with gradients that are better there.

What inference computes is TensorFlow's own, so an exported model holds nothing of this. On GPUs the gradients are
TensorFlow's own as well. `benchmarks/README.md` says how much time each one saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from utils.cpu import computes_bfloat16

FAST_WIDTH = 3  # oneDNN computes the depthwise filter's gradient with vectors for kernels of this width only
VECTOR = 16  # oneDNN normalises bfloat16 with vectors where this divides the number of channels

Gradient = Callable[..., tuple[tf.Tensor, ...] | tf.Tensor]


def on_gpu() -> bool:
    """Return whether TensorFlow may use a GPU in this process."""
    return bool(tf.config.get_visible_devices("GPU"))


def _with_gradient(function: Callable[..., tf.Tensor], gradient: Gradient, *inputs: Any) -> tf.Tensor:
    """Return `function(*inputs)`, whose gradients on CPUs are those that `gradient(upstream, *inputs)` returns."""
    tensors = [tf.convert_to_tensor(x) for x in inputs]
    if on_gpu():
        return function(*tensors)

    @tf.custom_gradient
    def forward(*tensors: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        return function(*tensors), lambda upstream: gradient(upstream, *tensors)

    return forward(*tensors)


def sum_type(dtype: tf.DType) -> tf.DType:
    """Return in which type to compute the gradients of depthwise filters for tensors of `dtype`.

    It is float32 for bfloat16 on CPUs without instructions for it, where TensorFlow adds up the pixels in bfloat16.
    """
    return tf.float32 if dtype == tf.bfloat16 and not on_gpu() and not computes_bfloat16() else dtype


def _pixels(x: tf.Tensor) -> tf.Tensor:
    """Return x (B, H, W, C) as (B·H·W, C)."""
    return tf.reshape(x, [-1, x.shape[-1]])


def swish(x: tf.Tensor) -> tf.Tensor:
    """Return x · sigmoid(x) (arXiv 1710.05941), of x's shape and dtype, with a gradient that XLA compiles on CPUs.

    TensorFlow's elementwise kernels for CPUs have no AVX2, and its gradient of swish is seven of them.
    """
    return _with_gradient(tf.nn.silu, _swish_gradient, x)


@tf.function(jit_compile=True, autograph=False)
def _swish_gradient(upstream: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the gradient in x, computed in float32 (float64 for float64) and rounded once."""
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    z, dy = tf.cast(x, wide), tf.cast(upstream, wide)
    s = tf.sigmoid(z)
    return tf.cast(dy * s * (1 + z * (1 - s)), x.dtype)


def depthwise_conv2d(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """Return `tf.nn.depthwise_conv2d` of x (B, H, W, C) by kernel (k, k, C, 1); padding is "SAME" or "VALID".

    Gradients on CPUs: oneDNN is slow in the filter of kernels wider than three, which is cut into pieces, and in the
    input of a strided convolution in bfloat16, which is computed in float32. For the filter's, see `sum_type`.
    """
    strides = [1, stride, stride, 1]

    def function(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding)

    def gradient(upstream: tf.Tensor, x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return (
            _input_gradient(x, kernel, upstream, strides, padding),
            _filter_gradient(x, kernel.shape, upstream, strides, padding),
        )

    return _with_gradient(function, gradient, x, kernel)


def dilated_depthwise_conv2d(
    x: tf.Tensor, kernel: tf.Tensor, rate: tuple[int, int], padding: str
) -> tf.Tensor:
    """Return `tf.nn.depthwise_conv2d` of x (B, H, W, C) by kernel (k, k, C, 1) with dilation, of x's dtype.

    It is computed in `sum_type` as a whole, since TensorFlow splits the image for it.
    """
    wide = sum_type(x.dtype)
    y = tf.nn.depthwise_conv2d(tf.cast(x, wide), tf.cast(kernel, wide), [1] * 4, padding, dilations=rate)
    return tf.cast(y, x.dtype)


def _input_gradient(
    x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, strides: list[int], padding: str
) -> tf.Tensor:
    wide = tf.float32 if x.dtype == tf.bfloat16 and strides[1] > 1 else x.dtype
    gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=tf.shape(x),
        filter=tf.cast(kernel, wide),
        out_backprop=tf.cast(upstream, wide),
        strides=strides,
        padding=padding,
    )
    return tf.cast(gradient, x.dtype)


def _filter_gradient(
    x: tf.Tensor, shape: tf.TensorShape, upstream: tf.Tensor, strides: list[int], padding: str
) -> tf.Tensor:
    height, width, channels, _ = shape
    dtype = x.dtype
    x, upstream = (tf.cast(value, sum_type(dtype)) for value in (x, upstream))

    def of(x: tf.Tensor, columns: int, padding: str) -> tf.Tensor:
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=x,
            filter_sizes=[height, columns, channels, 1],
            out_backprop=upstream,
            strides=strides,
            padding=padding,
        )

    if width <= FAST_WIDTH:
        return tf.cast(of(x, width, padding), dtype)
    if padding == "SAME":
        x = tf.pad(
            x, [[0, 0], *(_same_padding(tf.shape(x)[i], shape[i - 1], strides[i]) for i in (1, 2)), [0, 0]]
        )
    columns = (tf.shape(upstream)[2] - 1) * strides[2] + FAST_WIDTH  # that a piece of the kernel reads
    pieces, done = [], 0
    while done < width:  # the last piece begins where it fits, and gives some columns again
        start = min(done, width - FAST_WIDTH)
        pieces.append(of(x[:, :, start : start + columns], FAST_WIDTH, "VALID")[:, done - start :])
        done = start + FAST_WIDTH
    return tf.cast(tf.concat(pieces, 1), dtype)


def _same_padding(size: tf.Tensor, kernel: int, stride: int) -> list[tf.Tensor]:
    """Return the rows (or columns) that padding "SAME" adds before and behind."""
    total = tf.maximum((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]


def pointwise_conv2d(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return the convolution of x (B, H, W, C) by kernel (1, 1, C, F).

    The filter's gradient on CPUs is a product of matrices, which oneDNN computes in bfloat16 up to three times as fast
    as the gradient of a convolution.
    """

    def function(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def gradient(upstream: tf.Tensor, x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_input = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x), filter=kernel, out_backprop=upstream, strides=[1] * 4, padding="SAME"
        )
        of_filter = tf.matmul(_pixels(x), _pixels(upstream), transpose_a=True)
        return of_input, tf.reshape(of_filter, kernel.shape)

    return _with_gradient(function, gradient, x, kernel)


def bias_add(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Return x (B, H, W, C) + bias (C,).

    TensorFlow's own gradient of the bias sums bfloat16 numbers in bfloat16 on CPUs, where adding one more to a sum 256
    times as large changes nothing: that of the last layer's bias came out as 0.4 % of what it is. The product with ones
    sums in float32.
    """

    def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = _pixels(upstream)
        return upstream, tf.matmul(tf.ones([1, tf.shape(pixels)[0]], pixels.dtype), pixels)[0]

    return _with_gradient(tf.nn.bias_add, gradient, x, bias)


def global_mean(x: tf.Tensor) -> tf.Tensor:
    """Return the mean of the pixels of x (B, H, W, C) as (B, 1, 1, C).

    float16 is summed in float32: a sum above 65,504, or a count of pixels above it, is no float16.
    """

    @tf.custom_gradient
    def forward(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            shape = tf.shape(x)
            each = tf.cast(upstream, wide) / tf.cast(shape[1] * shape[2], wide)
            return tf.broadcast_to(tf.cast(each, x.dtype), shape)  # divided before it is large

        mean = tf.reduce_mean(tf.cast(x, wide), [1, 2], keepdims=True)
        return tf.cast(mean, x.dtype), gradient

    wide = tf.float32 if x.dtype == tf.float16 else x.dtype
    return forward(x)


def own_batch_norm(x: tf.Tensor) -> bool:
    """Return whether `batch_norm` is faster than TensorFlow's for x (B, H, W, C)."""
    return x.dtype == tf.bfloat16 and x.shape[-1] % VECTOR != 0 and not on_gpu()


def mean_of_rows(x: tf.Tensor) -> tf.Tensor:
    """Return the mean (C,) of the pixels of x (B, H, W, C), row by row: the sum of all of them would be inexact."""
    return tf.reduce_mean(tf.reduce_mean(x, 2), [0, 1])


def _sum_of_rows(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.reduce_sum(x, 2), [0, 1])


def batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalise x (B, H, W, C) by its own moments, as in training. Return the result, and mean and variance (C,).

    XLA compiles it, in float32 whatever x is. Only the result has a gradient.
    """

    @tf.custom_gradient
    def forward(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[Any, Gradient]:
        y, mean, variance = _normalise(x, gamma, beta, epsilon)

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return _normalise_gradient(x, upstream, gamma, mean, tf.math.rsqrt(variance + epsilon))

        return (y, mean, variance), gradient

    return forward(x, gamma, beta)


def frozen_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """Normalise x (B, H, W, C) by averages (C,) that are given, in float32 whatever x is.

    Its gradient is written out: XLA would keep x in float32 for that of gamma, which frozen batch norm does not need.
    """

    def gradient(upstream: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        dy = tf.cast(upstream, tf.float32)
        sums = (_sum_of_rows(t) for t in (dy * tf.cast(x, tf.float32), dy))
        return _affine(upstream, scale, tf.zeros_like(scale)), *sums

    scale = gamma * tf.math.rsqrt(variance + epsilon)
    return _with_gradient(_affine, gradient, x, scale, beta - mean * scale)


@tf.function(jit_compile=True, autograph=False)
def _affine(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return x (B, H, W, C) · scale + shift, computed in float32."""
    return tf.cast(tf.cast(x, tf.float32) * scale + shift, x.dtype)


@tf.function(jit_compile=True, autograph=False)
def _normalise(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    wide = tf.cast(x, tf.float32)
    mean = mean_of_rows(wide)
    variance = mean_of_rows(tf.math.squared_difference(wide, mean))
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    return tf.cast(wide * scale + (beta - mean * scale), x.dtype), mean, variance


@tf.function(jit_compile=True, autograph=False)
def _normalise_gradient(
    x: tf.Tensor, upstream: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the gradients in x, gamma and beta (arXiv 1502.03167, section 3); `inverse` is that of the deviation."""
    centred, dy = (tf.cast(x, tf.float32) - mean) * inverse, tf.cast(upstream, tf.float32)
    of_gamma, of_beta = (_sum_of_rows(t) for t in (dy * centred, dy))
    count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)
    of_x = gamma * inverse * (dy - (of_beta + centred * of_gamma) / count)
    return tf.cast(of_x, x.dtype), of_gamma, of_beta
