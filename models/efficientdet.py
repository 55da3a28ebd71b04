"""EfficientDet (arXiv 1911.09070) for segmentation: EfficientNet, BiFPN, and a head up to full resolution.

Layers are named as in the published checkpoints; with `min_level` 3, backbone, resampling and BiFPN have
exactly the published variables.
"""

from __future__ import annotations

import re

import tensorflow as tf
import tf_keras as keras

from models.catalog import FPN_MAX_LEVEL, EfficientDetRow
from models.efficientnet import efficientnet
from models.layers import (
    Conv2D,
    Conv2DTranspose,
    FastFusion,
    Norm,
    SeparableConv2D,
    act,
    conv_bn_act,
    float32,
)

Node = tuple[int, tuple[int, ...]]  # level, and which earlier features (by index) it fuses


def bifpn_nodes(min_level: int, max_level: int = FPN_MAX_LEVEL) -> list[Node]:
    """Return the nodes of a BiFPN cell (figure 3d). Features 0 … n-1 are its inputs, finest first; node i is n+i."""
    ids = {level: [level - min_level] for level in range(min_level, max_level + 1)}
    nodes: list[Node] = []

    def add(level: int, inputs: list[int]) -> None:
        nodes.append((level, tuple(inputs)))
        ids[level].append(len(ids) + len(nodes) - 1)

    for level in range(max_level - 1, min_level - 1, -1):  # top-down
        add(level, [ids[level][-1], ids[level + 1][-1]])
    for level in range(min_level + 1, max_level + 1):  # bottom-up, with all that the level has so far
        add(level, [*ids[level], ids[level - 1][-1]])
    return nodes


def resample(x: tf.Tensor, steps: int, filters: int, norm: Norm, name: str) -> tf.Tensor:
    """Resample to `filters` channels by a 1x1 convolution where x has others, then by `steps` levels (-1, 0 or 1).

    Coarser (1) by 3x3 max-pooling of stride 2, finer (-1) by repeating pixels. (B, H, W, C) → (B, H', W', F)
    """
    if x.shape[-1] != filters:
        x = conv_bn_act(x, Conv2D(filters, 1, name=f"{name}/conv2d"), norm, f"{name}/bn")
    if steps > 0:
        return keras.layers.MaxPooling2D(3, strides=2, padding="same", name=f"{name}/max_pool")(x)
    if steps < 0:
        return keras.layers.UpSampling2D(2, interpolation="nearest", name=f"{name}/upsample")(x)
    return x


def bifpn_cell(
    features: dict[int, tf.Tensor], filters: int, weighted: bool, norm: Norm, name: str
) -> dict[int, tf.Tensor]:
    """Apply one BiFPN cell: {level: (B, H/2^level, W/2^level, C)} → the same levels with `filters` channels."""
    min_level = min(features)
    tensors = [(level, features[level]) for level in sorted(features)]
    for i, (level, inputs) in enumerate(bifpn_nodes(min_level)):
        node = f"{name}/fnode{i}"
        count = len(tensors)  # part of the published names
        resampled = [
            resample(x, level - from_level, filters, norm, f"{node}/resample_{j}_{k}_{count}")
            for j, k in enumerate(inputs)
            for from_level, x in [tensors[k]]
        ]
        x = FastFusion(name=node)(resampled) if weighted else keras.layers.Add(name=node)(resampled)
        combine = f"{node}/op_after_combine{count}"
        conv = SeparableConv2D(filters, 3, padding="same", name=f"{combine}/conv")
        x = conv_bn_act(act(x, "swish", combine), conv, norm, f"{combine}/bn")
        tensors.append((level, x))
    return dict(tensors)  # a level's last node wins


def feature_pyramid(
    levels: dict[int, tf.Tensor], row: EfficientDetRow, min_level: int, cells: int, norm: Norm
) -> dict[int, tf.Tensor]:
    """Return P<min_level> … P7 after `cells` BiFPN cells, from a backbone's levels up to 5."""
    features = {level: x for level, x in levels.items() if level >= min_level}
    for level in range(max(levels) + 1, FPN_MAX_LEVEL + 1):
        features[level] = resample(features[level - 1], 1, row.fpn_filters, norm, f"resample_p{level}")
    for i in range(cells):
        features = bifpn_cell(features, row.fpn_filters, row.weighted_fusion, norm, f"fpn_cells/cell_{i}")
    return features


def segmentation_head(
    features: dict[int, tf.Tensor], filters: int, num_classes: int, norm: Norm
) -> tf.Tensor:
    """Go from the coarsest level up with skips: {level: …} → logits (B, 2·H_min, 2·W_min, classes).

    This is the head of the published code (google/automl); the paper's section 5.3 only names its BiFPN.
    """
    levels = sorted(features, reverse=True)
    x = features[levels[0]]
    for i, level in enumerate(levels[1:]):
        conv = up_conv(filters, i, use_bias=False)
        x = conv_bn_act(x, conv, norm, f"segmentation_head/bn_{i}", "swish")
        x = keras.layers.Concatenate(name=f"segmentation_head/skip_{i}")([x, features[level]])
    return up_conv(num_classes, len(levels) - 1, use_bias=True)(x)


def up_conv(filters: int, index: int, use_bias: bool) -> keras.layers.Layer:
    """Return the head's 3x3 transposed convolution of stride 2."""
    name = "segmentation_head/conv2d_transpose" + (f"_{index}" if index else "")
    return Conv2DTranspose(filters, 3, strides=2, padding="same", use_bias=use_bias, name=name)


def build(
    images: tf.Tensor, row: EfficientDetRow, num_classes: int, min_level: int, cells: int, norm: Norm
) -> tf.Tensor:
    """Normalised images (B, H, W, 3), sides multiples of 128 → float32 logits (B, H, W, classes)."""
    features = feature_pyramid(efficientnet(images, row, norm), row, min_level, cells, norm)
    logits = segmentation_head(features, row.fpn_filters, num_classes, norm)
    if min_level == 1:
        return float32(logits, "logits")
    factor = 2 ** (min_level - 1)
    return keras.layers.UpSampling2D(factor, interpolation="bilinear", dtype="float32", name="logits")(logits)


def block_of(layer: str) -> str:
    """Return the block of a layer, by which activations are recomputed: MBConv block, BiFPN node or step of the head.

    A skip goes with the step that reads it: what is kept is its parts, which are needed anyway.
    """
    scope = re.match(r"fpn_cells/cell_\d+/fnode\d+|[^/]*/(stem|blocks_\d+)|resample_p\d", layer)
    if scope is not None:
        return scope[0]
    step = re.match(r"segmentation_head/(?:(skip_)|bn_|conv2d_transpose_?)(\d*)|logits", layer)
    if step is None:
        raise ValueError(f"layer {layer} is in no block")
    return f"segmentation_head/{int(step[2] or 0) + bool(step[1])}" if step[2] is not None else "logits"
