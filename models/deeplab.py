"""DeepLabV3+ (arXiv 1802.02611) with the modified aligned Xception-65.

Layers have the names, order and weights of the public `deeplabv3_xception_tf_dim_ordering_tf_kernels.h5`. As
in the network that file belongs to, and in the original TensorFlow code, bilinear resizing aligns corners.
"""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import (
    Conv2D,
    DepthwiseConv2D,
    Dropout,
    GlobalAveragePooling2D,
    Norm,
    act,
    conv_bn_act,
    float32,
)

DECODER_EPSILON = 1e-5  # of batch normalization from the ASPP on; Xception has the default
MIDDLE_UNITS = 16
# output stride → stride of entry block 3; dilations of middle flow, exit blocks 1 and 2, ASPP's branches
ATROUS: dict[int, tuple[int, int, int, int, tuple[int, int, int]]] = {
    16: (2, 1, 1, 2, (6, 12, 18)),
    8: (1, 2, 2, 4, (12, 24, 36)),
}

BLOCKS = re.compile(
    r"entry_flow_conv1|entry_flow_block\d(_separable_conv\d)?|middle_flow_unit_\d+|exit_flow_block\d"
    r"|image_pooling|aspp\d|(aspp_)?concat|decoder_conv\d|decoder|feature_projection|logits"
)


def conv2d(filters: int, kernel: int, name: str, strides: int = 1, use_bias: bool = False) -> Conv2D:
    """Return a convolution layer with padding "same"."""
    return Conv2D(filters, kernel, strides=strides, padding="same", use_bias=use_bias, name=name)


def sep_conv(
    x: tf.Tensor,
    filters: int,
    norm: Norm,
    name: str,
    *,
    stride: int = 1,
    rate: int = 1,
    inner_relu: bool = False,
) -> tf.Tensor:
    """Depthwise 3x3 and pointwise convolution, each with batch norm. (B, H, W, C) → (B, H', W', filters)

    ReLU comes before (Xception), or with `inner_relu` after each of the two (exit block 2, ASPP, decoder).
    """
    if stride > 1:  # centred, whatever the parity of the size; "same" would pad at the end only
        x = keras.layers.ZeroPadding2D(rate, name=f"{name}_pad")(x)
    if not inner_relu:
        x = act(x, "relu", name)
    depthwise = DepthwiseConv2D(
        3,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        dilation_rate=rate,
        use_bias=False,
        name=f"{name}_depthwise",
    )
    relu = "relu" if inner_relu else None
    x = conv_bn_act(x, depthwise, norm, f"{name}_depthwise_BN", relu)
    return conv_bn_act(x, conv2d(filters, 1, f"{name}_pointwise"), norm, f"{name}_pointwise_BN", relu)


def xception_block(
    x: tf.Tensor,
    filters: tuple[int, int, int],
    norm: Norm,
    name: str,
    *,
    shortcut: str,
    stride: int = 1,
    rate: int = 1,
    inner_relu: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Three separable convolutions and a shortcut ("conv", "sum" or "none"): (output, the second one's).

    The stride is the third's. (B, H, W, C) → (B, H', W', filters[2]), (B, H, W, filters[1])
    """
    inputs, outputs = x, []
    for i in range(3):
        x = sep_conv(
            x,
            filters[i],
            norm,
            f"{name}_separable_conv{i + 1}",
            stride=stride if i == 2 else 1,
            rate=rate,
            inner_relu=inner_relu,
        )
        outputs.append(x)
    if shortcut == "conv":
        # A 1x1 kernel needs no padding; "valid" is what the public file's network has where it strides.
        conv = Conv2D(
            filters[2],
            1,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            use_bias=False,
            name=f"{name}_shortcut",
        )
        inputs = conv_bn_act(inputs, conv, norm, f"{name}_shortcut_BN")
    if shortcut != "none":
        x = keras.layers.Add(name=f"{name}_add")([x, inputs])
    return x, outputs[1]


def xception65(images: tf.Tensor, output_stride: int, norm: Norm) -> dict[int, tf.Tensor]:
    """Levels {2: stride 4, the decoder's skip; 4: at `output_stride`} of normalised images (B, H, W, 3)."""
    stride3, middle_rate, exit1_rate, exit2_rate, _ = ATROUS[output_stride]
    x = conv_bn_act(
        images, conv2d(32, 3, "entry_flow_conv1_1", strides=2), norm, "entry_flow_conv1_1_BN", "relu"
    )
    x = conv_bn_act(x, conv2d(64, 3, "entry_flow_conv1_2"), norm, "entry_flow_conv1_2_BN", "relu")
    x, _ = xception_block(x, (128, 128, 128), norm, "entry_flow_block1", shortcut="conv", stride=2)
    x, skip = xception_block(x, (256, 256, 256), norm, "entry_flow_block2", shortcut="conv", stride=2)
    x, _ = xception_block(x, (728, 728, 728), norm, "entry_flow_block3", shortcut="conv", stride=stride3)
    for i in range(1, MIDDLE_UNITS + 1):
        x, _ = xception_block(
            x, (728, 728, 728), norm, f"middle_flow_unit_{i}", shortcut="sum", rate=middle_rate
        )
    x, _ = xception_block(x, (728, 1024, 1024), norm, "exit_flow_block1", shortcut="conv", rate=exit1_rate)
    x, _ = xception_block(
        x, (1536, 1536, 2048), norm, "exit_flow_block2", shortcut="none", rate=exit2_rate, inner_relu=True
    )
    return {2: skip, 4: x}


def image_pooling(x: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Project the mean of all pixels and repeat it at every pixel. (B, H, W, C) → (B, H, W, 256)"""
    pooled = GlobalAveragePooling2D(keepdims=True, name="image_pooling_mean")(x)  # (B, 1, 1, C)
    pooled = conv_bn_act(pooled, conv2d(256, 1, "image_pooling"), norm, "image_pooling_BN", "relu")
    return ResizeLike(name="image_pooling_resize")([pooled, x])


def aspp(x: tf.Tensor, rates: tuple[int, int, int], norm: Norm) -> tf.Tensor:
    """Atrous spatial pyramid pooling (arXiv 1706.05587, figure 5). (B, H, W, 2048) → (B, H, W, 256)"""
    branches = [
        image_pooling(x, norm),
        conv_bn_act(x, conv2d(256, 1, "aspp0"), norm, "aspp0_BN", "relu"),
        *(sep_conv(x, 256, norm, f"aspp{i}", rate=rate, inner_relu=True) for i, rate in enumerate(rates, 1)),
    ]
    x = keras.layers.Concatenate(name="aspp_concat")(branches)
    x = conv_bn_act(x, conv2d(256, 1, "concat_projection"), norm, "concat_projection_BN", "relu")
    return Dropout(0.1, name="concat_projection_dropout")(x)


def decoder(x: tf.Tensor, skip: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Decode the encoder's output with the skip. (B, H/16, W/16, 256), (B, H/4, W/4, 256) → (B, H/4, W/4, 256)"""
    x = ResizeLike(name="decoder_resize")([x, skip])
    skip = conv_bn_act(skip, conv2d(48, 1, "feature_projection0"), norm, "feature_projection0_BN", "relu")
    x = keras.layers.Concatenate(name="decoder_concat")([x, skip])
    for i in range(2):
        x = sep_conv(x, 256, norm, f"decoder_conv{i}", inner_relu=True)
    return x


def build(images: tf.Tensor, num_classes: int, output_stride: int, norm: Norm) -> tf.Tensor:
    """Normalised images (B, H, W, 3) of any size → float32 logits (B, H, W, classes)."""
    levels = xception65(images, output_stride, norm)

    def decoder_norm(name: str) -> keras.layers.Layer:
        return norm(name=name, epsilon=DECODER_EPSILON)

    x = aspp(levels[4], ATROUS[output_stride][-1], decoder_norm)
    x = decoder(x, levels[2], decoder_norm)
    logits = float32(conv2d(num_classes, 1, "logits_semantic", use_bias=True)(x), "logits_float32")
    return ResizeLike(dtype="float32", name="logits")([logits, images])


def block_of(layer: str) -> str:
    """Return the block of a layer, by which activations are recomputed: Xception block, branch of the ASPP, …

    Of the entry flow's first blocks, whose resolution is high, each separable convolution is one.
    """
    block = BLOCKS.match(layer)
    if block is None:
        raise ValueError(f"layer {layer} is in no block")
    return block[0]


@keras.utils.register_keras_serializable("models")
class ResizeLike(keras.layers.Layer):
    """Bilinear resize of the first input (B, h, w, C) to the second's height and width, corners aligned."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        x, like = inputs
        # As two products with interpolation matrices it takes 1.4 to 2 times as long on a CPU. Gives float32.
        y = tf.raw_ops.ResizeBilinear(images=x, size=tf.shape(like)[1:3], align_corners=True)
        y.set_shape(self.compute_output_shape([x.shape, like.shape]))
        return tf.cast(y, x.dtype)

    def compute_output_shape(self, input_shape: list[Any]) -> tuple[int | None, ...]:
        x, like = input_shape
        return (x[0], like[1], like[2], x[3])
