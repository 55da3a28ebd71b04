"""The shapes of what the layers of a model give, for images of a size, without computing any of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf
import tf_keras as keras

from models.spatial.rows import Strips, length
from utils.ranks.patch_group import strip_rows

Shape = tuple[int, ...]


def with_inputs(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, list[str]]]:
    """Yield each layer of a functional model but the first, in order, and the names of the layers that it reads."""
    # Index 0: a layer has one more input and output for each model that it is part of.
    names = {id(layer.get_output_at(0)): layer.name for layer in model.layers}
    for layer in model.layers[1:]:
        yield layer, [names[id(x)] for x in tf.nest.flatten(layer.get_input_at(0))]


def output_shapes(model: keras.Model, images: Sequence[int]) -> dict[str, Shape]:
    """Return the shape of the output of each layer by its name, for images of the shape (B, H, W, 3)."""
    shapes = {model.layers[0].name: tuple(images)}
    for layer, inputs in with_inputs(model):
        of_inputs = [shapes[name] for name in inputs]
        shapes[layer.name] = tuple(
            layer.compute_output_shape(of_inputs if len(of_inputs) > 1 else of_inputs[0])
        )
    return shapes


def largest_output(shapes: dict[str, Shape], height: int, ranks_per_patch: int) -> tuple[str, int]:
    """Return the layer whose output has the most elements, and how many a rank has of it.

    `shapes` are those of whole patches with `height` rows, which `ranks_per_patch` ranks share.
    """
    strips = Strips(strip_rows(height, ranks_per_patch))
    sizes = {
        name: batch * max(map(length, strips.of(rows))) * width * channels
        for name, (batch, rows, width, channels) in shapes.items()
    }
    largest = max(sizes, key=lambda name: sizes[name])
    return largest, sizes[largest]
