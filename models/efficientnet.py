"""EfficientNet's convolutional part (arXiv 1905.11946, table 1). Variables are named as published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tensorflow as tf
import tf_keras as keras

from models.catalog import EfficientDetRow
from models.layers import Conv2D, DepthwiseConv2D, Dropout, GlobalAveragePooling2D, Norm, act, conv_bn_act


@dataclass(frozen=True)
class Stage:
    """One line of table 1: MBConv blocks of one width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    filters: int


STEM_FILTERS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
SE_RATIO = 0.25
# He's normal over the fan-out, untruncated, as in the published code; a depthwise kernel's fan-out is k·k.
KERNEL_INIT = {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}


def round_filters(filters: int, width: float) -> int:
    """Channels after width scaling: the nearest multiple of 8, but no more than 10 % below."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Blocks of a stage after depth scaling."""
    return math.ceil(depth * repeats)


def block_plan(width: float, depth: float) -> list[Stage]:
    """Return all blocks in order, as scaled stages of one repeat; only a stage's first block keeps its stride."""
    plan = []
    for stage in STAGES:
        filters = round_filters(stage.filters, width)
        for i in range(round_repeats(stage.repeats, depth)):
            plan.append(Stage(1, stage.kernel, stage.stride if i == 0 else 1, stage.expand, filters))
    return plan


def conv2d(filters: int, kernel: int, name: str, strides: int = 1, use_bias: bool = False) -> Conv2D:
    """EfficientNet's convolution: padding "same", published initialisation."""
    return Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(**KERNEL_INIT),
        name=name,
    )


def squeeze_excite(x: tf.Tensor, filters: int, name: str) -> tf.Tensor:
    """Scales each channel of x (B, H, W, C) by what `filters` hidden units make of the channel means."""
    scale = GlobalAveragePooling2D(keepdims=True, name=f"{name}/squeeze")(x)  # (B, 1, 1, C)
    scale = act(conv2d(filters, 1, f"{name}/conv2d", use_bias=True)(scale), "swish", f"{name}/conv2d")
    scale = act(
        conv2d(x.shape[-1], 1, f"{name}/conv2d_1", use_bias=True)(scale), "sigmoid", f"{name}/conv2d_1"
    )
    return keras.layers.Multiply(name=f"{name}/excite")([x, scale])


def mbconv(x: tf.Tensor, block: Stage, survival_prob: float, norm: Norm, name: str) -> tf.Tensor:
    """Apply an inverted residual: expand, depthwise, squeeze-excite, project. (B, H, W, C) → (B, H', W', filters)"""
    inputs, filters_in = x, x.shape[-1]
    convs = iter(["conv2d", "conv2d_1"])  # the published names count up within a block
    norms = iter(["tpu_batch_normalization", "tpu_batch_normalization_1", "tpu_batch_normalization_2"])
    if block.expand != 1:
        expand = conv2d(filters_in * block.expand, 1, f"{name}/{next(convs)}")
        x = conv_bn_act(x, expand, norm, f"{name}/{next(norms)}", "swish")
    depthwise = DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=keras.initializers.VarianceScaling(**KERNEL_INIT),
        name=f"{name}/depthwise_conv2d",
    )
    x = conv_bn_act(x, depthwise, norm, f"{name}/{next(norms)}", "swish")
    x = squeeze_excite(x, max(1, int(filters_in * SE_RATIO)), f"{name}/se")
    x = conv_bn_act(x, conv2d(block.filters, 1, f"{name}/{next(convs)}"), norm, f"{name}/{next(norms)}")
    if block.stride != 1 or filters_in != block.filters:
        return x
    if survival_prob < 1:  # stochastic depth (arXiv 1603.09382): a whole image's residual is kept or dropped
        x = Dropout(1 - survival_prob, noise_shape=(None, 1, 1, 1), name=f"{name}/stochastic_depth")(x)
    return keras.layers.Add(name=f"{name}/add")([x, inputs])


def efficientnet(images: tf.Tensor, row: EfficientDetRow, norm: Norm) -> dict[int, tf.Tensor]:
    """Levels {1: stride 2, … 5: stride 32} of normalised images (B, H, W, 3): each stride's last block."""
    plan, prefix = block_plan(row.width, row.depth), row.backbone
    stem = conv2d(round_filters(STEM_FILTERS, row.width), 3, f"{prefix}/stem/conv2d", strides=2)
    x = conv_bn_act(images, stem, norm, f"{prefix}/stem/tpu_batch_normalization", "swish")
    levels, level = {}, 1
    for i, block in enumerate(plan):
        survival_prob = 1 - (1 - row.survival_prob) * i / len(plan)
        x = mbconv(x, block, survival_prob, norm, f"{prefix}/blocks_{i}")
        level += block.stride == 2
        levels[level] = x
    return levels
