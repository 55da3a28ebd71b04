"""Runs an expansion a few channels at a time: a 1x1 convolution, and layers behind it that look at one channel each.

In an MBConv block (arXiv 1801.04381) the expansion has six times the channels of what comes in, and its depthwise
convolution may halve the sides. So for the gradient of a large image it takes more memory than all else; a part of its
channels takes a part of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tf_keras as keras

from models.layers import BatchNormalization, Conv2D, DepthwiseConv2D, Swish

PARTS = 3  # of six times the channels that come in, which are a multiple of 8: oneDNN's vectors have 16

# The variables of each kind of layer, which have the channels of its output on this axis.
VARIABLES = {
    Conv2D: (("kernel", 3),),
    BatchNormalization: tuple((name, 0) for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    DepthwiseConv2D: (("depthwise_kernel", 2),),
    Swish: (),
}
WHOLE = slice(None)


def leading_expansion(layers: Sequence[keras.layers.Layer]) -> Sequence[keras.layers.Layer]:
    """Return the first of `layers`, up to a depthwise convolution with a stride, if they can run in parts; else none.

    Each of them must read the one before.
    """
    first = layers[0]
    if type(first) is not Conv2D or first.kernel_size != (1, 1) or first.use_bias or first.filters % PARTS:
        return []
    for i, layer in enumerate(layers[1:], 2):
        if type(layer) not in VARIABLES or type(layer) is Conv2D:
            return []
        if type(layer) is DepthwiseConv2D:
            return layers[:i] if layer.strides[0] > 1 else []
    return []


def channel_parts(expansion: Sequence[keras.layers.Layer]) -> list[slice]:
    """Return the channels of each part of an expansion."""
    size = expansion[0].filters // PARTS
    return [slice(i * size, (i + 1) * size) for i in range(PARTS)]


@contextlib.contextmanager
def only_channels(layers: Sequence[keras.layers.Layer], channels: slice) -> Iterator[None]:
    """Let `layers` compute these channels of their outputs. Their gradients are those of the whole variables.

    Batch norm's averages cannot move within.
    """
    if channels == WHOLE:
        yield
        return
    hidden = []
    try:
        for layer in layers:
            values = {"_input_spec": None}  # it asks for all channels
            for name, axis in VARIABLES[type(layer)]:
                part = getattr(layer, name)[(slice(None),) * axis + (channels,)]
                values[name] = (
                    part if type(layer) is BatchNormalization else tf.cast(part, layer.compute_dtype)
                )
            hidden.append((layer, {name: layer.__dict__[name] for name in values}))
            layer.__dict__.update(values)  # not by Keras, which would take the parts for variables
        yield
    finally:
        for layer, before in hidden:
            layer.__dict__.update(before)
