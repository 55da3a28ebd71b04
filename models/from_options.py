"""Builds the network that the options of train.py describe, for the training and for the prediction.

Importing this imports no TensorFlow yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models import build_model

if TYPE_CHECKING:
    import tf_keras as keras

PRECISIONS = ("float32", "float16", "bfloat16")  # choices of --mixed_precision
AUTO = "auto"  # one more of train.py, which settles it before a network is built
NETWORK_OPTIONS = ("model", "fpn_min_level", "fpn_cells", "output_stride")  # decide which variables there are


def set_precision(precision: str) -> None:
    """Let layers that are built from now on compute in one of PRECISIONS. Their variables stay float32.

    AUTO that nobody settled is float32.
    """
    import tf_keras as keras

    whole = precision in ("float32", AUTO)
    keras.mixed_precision.set_global_policy("float32" if whole else f"mixed_{precision}")


def network_from_options(
    options: argparse.Namespace | Mapping[str, Any], num_classes: int, batch_norm: Any = None
) -> keras.Model:
    """Return `models.build_model` of the options of train.py, or of those that its options.json holds.

    The network takes images of any size. `batch_norm` is a layer class that replaces Keras's.
    KeyError: one of NETWORK_OPTIONS is missing.
    """
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    return build_model(
        options["model"],
        None,
        num_classes,
        fpn_min_level=options["fpn_min_level"],
        fpn_cells=options["fpn_cells"],
        output_stride=options["output_stride"],
        bn_momentum=options.get("bn_momentum"),  # older runs have none, and only the training needs it
        batch_norm=batch_norm,
    )
