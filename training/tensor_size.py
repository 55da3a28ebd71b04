"""Refuses steps whose tensors have more elements than TensorFlow's kernels can count."""

from __future__ import annotations

import argparse
from typing import Any

import tf_keras as keras

from models.from_options import network_from_options
from models.shapes import largest_output, output_shapes
from utils.cli import UserError

LIMIT = 2**31 - 1  # elements: several kernels, among them convolutions on CPUs and cuDNN's, index with int32


def network_to_train(options: argparse.Namespace, num_classes: int, batch_norm: Any = None) -> keras.Model:
    """Return `network_from_options`. UserError, with what would work, if one of its layers gives more than LIMIT."""
    model = network_from_options(options, num_classes, batch_norm)
    size, batch, ranks = options.img_size, options.batch_size, options.ranks_per_patch
    shapes = output_shapes(model, (batch, size, size, 3))
    layer, elements = largest_output(shapes, size, ranks)
    if elements <= LIMIT:
        _refuse_whole_slides(options, model)
        return model
    more = (n for n in range(ranks + 1, size + 1) if largest_output(shapes, size, n)[1] <= LIMIT)
    ways = [f"--ranks_per_patch {next(more)} or more"]
    if batch > 1 and elements <= LIMIT * batch:
        ways.append("--batch_size 1")
    raise UserError(
        f"the output of layer {layer} has {elements:,} elements on a rank with --img_size {size} and --batch_size "
        f"{batch}, but kernels of TensorFlow count no more than {LIMIT:,}: take {' or '.join(ways)}"
    )


def _refuse_whole_slides(options: argparse.Namespace, model: keras.Model) -> None:
    """UserError: --validate_slides would predict whole patches, one at a time, that only several ranks can have."""
    size = options.img_size
    layer, elements = largest_output(output_shapes(model, (1, size, size, 3)), size, 1)
    if options.validate_slides is not None and elements > LIMIT:
        raise UserError(
            f"--validate_slides predicts whole patches on each rank, and the output of layer {layer} has {elements:,} "
            f"elements with --img_size {size}, but kernels of TensorFlow count no more than {LIMIT:,}: leave "
            "--validate_slides off, and predict with predict.py and a smaller --img_size"
        )
