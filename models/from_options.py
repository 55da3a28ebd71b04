"""The network that the options of a training run describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models import build_model

if TYPE_CHECKING:
    import tf_keras as keras


def network_from_options(options: Mapping[str, Any], num_classes: int, batch_norm: Any = None) -> keras.Model:
    """Build the network of `options`, as train.py has them or as options.json holds them: see `build_model`.

    Sets the global policy of mixed precision. `batch_norm` is a layer class to use in place of Keras's.
    """
    import tf_keras as keras

    policy = options["mixed_precision"]
    keras.mixed_precision.set_global_policy(policy if policy == "float32" else f"mixed_{policy}")
    return build_model(
        options["model"],
        None,
        num_classes,
        fpn_min_level=options["fpn_min_level"],
        fpn_cells=options["fpn_cells"],
        output_stride=options["output_stride"],
        bn_momentum=options["bn_momentum"],
        batch_norm=batch_norm,
    )
