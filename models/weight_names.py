"""Names of variables that mean the same whatever file or model they come from.

Files number things: a BiFPN node by its place in a cell that may start at another level, a layer by how often
its class was made before, a block by stage and letter. `common_names` makes levels and block numbers of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from models.catalog import FPN_MAX_LEVEL

CLASS_LAYERS = ("logits_semantic/", "segmentation_head/classes_")  # as wide as there are classes
BACKBONE = "backbone/"
_XCEPTION = re.compile(r"(?:entry|middle|exit)_flow_")

_EFFICIENTDET = re.compile(r"(?:^|/)((?:efficientnet-b\d|resample_p\d|fpn_cells|segmentation_head)/.+)$")
_FNODE = re.compile(r"fpn_cells/(cell_\d+)/fnode(\d+)/(.+)$")
_COMBINE = re.compile(r"fpn_cells/cell_\d+/fnode(\d+)/op_after_combine(\d+)/")
_UP_CONV = re.compile(r"segmentation_head/conv2d_transpose(?:_(\d+))?/(.+)$")
# Of Keras applications, also as a model within a model.
_KERAS_BLOCK = re.compile(r"(?:^|.*/)block(\d)([a-z])_([^/]+)/([^/]+)$")
_KERAS_STEM = re.compile(r"(?:^|.*/)(stem_conv|stem_bn)/([^/]+)$")
_KERAS_STEM_LAYERS = {"stem_conv": "stem/conv2d", "stem_bn": "stem/tpu_batch_normalization"}
# Keras 3 calls this variable of a depthwise convolution "kernel", Keras 2 "depthwise_kernel".
_DEPTHWISE = re.compile(r"((?:_depthwise|/depthwise_conv2d|_dwconv)/)kernel$")
_KERAS_LAYERS = {
    "dwconv": "depthwise_conv2d",
    "se_reduce": "se/conv2d",
    "se_expand": "se/conv2d_1",
}
# In order of use; the published code counts each kind from 0 in a block, and stage 1 does not expand.
_KERAS_COUNTED = {
    "conv2d": ("expand_conv", "project_conv"),
    "tpu_batch_normalization": ("expand_bn", "bn", "project_bn"),
}


def common_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Return {common name: names} of the variables of a file or model; of names that mean the same the shortest first.

    So a model's weights come before an optimizer's averages of them ("Adam/m/<name>").
    """
    plain = {name: _DEPTHWISE.sub(r"\1depthwise_kernel", re.sub(r":\d+$", "", name)) for name in names}
    plain = {name: (match[1] if (match := _EFFICIENTDET.search(p)) else p) for name, p in plain.items()}
    levels = _level_count(plain.values())
    first_up = min((int(m[1] or 0) for p in plain.values() if (m := _UP_CONV.match(p))), default=0)
    blocks = sorted({(m[1], m[2]) for p in plain.values() if (m := _KERAS_BLOCK.match(p))})
    result: dict[str, list[str]] = {}
    for name in sorted(plain, key=lambda name: (len(name), name)):
        common = _common_name(plain[name], levels, first_up, blocks)
        result.setdefault(common, []).append(name)
    return result


def unit_of(common: str) -> str:
    """Return what a variable is a part of that a file holds either whole or not at all.

    This is the backbone, a node of a BiFPN cell, a step of the head, or a convolution with its batch normalization.
    """
    if common.startswith(BACKBONE) or _XCEPTION.match(common):
        return BACKBONE
    if match := re.match(r"(fpn_cells/cell_\d+/[^/]+|resample_p\d+)/", common):
        return match[1]
    if match := re.match(r"segmentation_head/(?:up|bn)_(\d+)/", common):
        return f"segmentation_head/{match[1]}"
    return re.sub(r"_BN$", "", common.rpartition("/")[0])


def _common_name(name: str, levels: int, first_up: int, blocks: list[tuple[str, str]]) -> str:
    if name.startswith("efficientnet-b"):
        inner = name.split("/", 1)[1]
        # A second model in a process has stem_1/conv2d_1; blocks are named outright.
        inner = re.sub(r"^stem(_\d+)?/(conv2d|tpu_batch_normalization)(_\d+)?/", r"stem/\2/", inner)
        return BACKBONE + inner
    if match := _FNODE.match(name):
        cell, index, rest = match[1], int(match[2]), match[3]
        return f"fpn_cells/{cell}/{_node_name(index, levels)}/{_without_count(rest)}"
    if match := _UP_CONV.match(name):
        index = int(match[1] or 0) - first_up
        layer = f"classes_p{FPN_MAX_LEVEL + 1 - levels}" if index == levels - 1 else f"up_{index}"
        return f"segmentation_head/{layer}/{match[2]}"
    if match := _KERAS_BLOCK.match(name):
        layer = _keras_layer(match[3], expands=match[1] != "1")
        return f"{BACKBONE}blocks_{blocks.index((match[1], match[2]))}/{layer}/{match[4]}"
    if match := _KERAS_STEM.match(name):
        return f"{BACKBONE}{_KERAS_STEM_LAYERS[match[1]]}/{match[2]}"
    return name.replace("custom_logits_semantic/", "logits_semantic/")


def _level_count(names: Iterable[str]) -> int:
    """Return the number of BiFPN levels: nodes' names count the features before them; else the head's steps up."""
    names = list(names)
    for name in names:
        if match := _COMBINE.match(name):
            return int(match[2]) - int(match[1])
    return len({match[1] for name in names if (match := _UP_CONV.match(name))})


def _node_name(index: int, levels: int) -> str:
    """Return level and direction of a BiFPN node: "p6_down" is the first of a cell that goes up to P7."""
    steps = levels - 1  # nodes each way
    if index < steps:
        return f"p{FPN_MAX_LEVEL - 1 - index}_down"
    return f"p{FPN_MAX_LEVEL - steps + 1 + index - steps}_up"


def _without_count(rest: str) -> str:
    """Drops from a layer's name what depends on the number of levels: feature and node numbers."""
    return re.sub(
        r"^resample_(\d+)_\d+_\d+", r"resample_\1", re.sub(r"^op_after_combine\d+", "op_after_combine", rest)
    )


def _keras_layer(layer: str, expands: bool) -> str:
    """Return the published name of a layer in a block of Keras-applications EfficientNet."""
    for kind, order in _KERAS_COUNTED.items():
        if layer in order:
            index = order.index(layer) - (not expands)
            return f"{kind}_{index}" if index else kind
    return _KERAS_LAYERS.get(layer, layer)
