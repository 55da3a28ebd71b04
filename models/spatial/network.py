"""Runs a functional Keras model on strips of patches: its own layers and variables, each layer in its spatial form."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.shapes import with_inputs
from models.spatial.exchange import remembering, sum_over
from models.spatial.forms import form_of
from models.spatial.place import Place
from models.spatial.rows import Strips
from utils.ranks.group import Group
from utils.ranks.patch_group import strip_rows


class Spatial:
    """Runs `model`, or parts of it that have the same layers, on this rank's strips of the patches of `group`.

    The graphs of all ranks together compute what one process computes of the whole patches. Gradients are those of the
    sum of the ranks' losses, in what each rank has: each variable's gradient is the sum over the ranks of the group.
    """

    def __init__(self, model: keras.Model, strips: Strips, group: Group) -> None:
        """ValueError names a layer that has no spatial form, or says that there are not as many strips as ranks."""
        if len(strips.image) != group.size:
            raise ValueError(f"{group.size} ranks cannot have {len(strips.image)} strips")
        self.group, self.strips = group, strips
        self.places = {place.layer.name: place for place in _places(model, strips, group)}

    def __call__(
        self, model: keras.Model, inputs: Any, training: bool, memory: dict[str, tf.Tensor] | None = None
    ) -> Any:
        """Collective: return the outputs of `model`. Tensors are (B, rows of this rank, W, C) or whole feature maps.

        `memory` gets what comes from other ranks. What it has of earlier runs of the same images is not sent again.
        In training what layers draw must be the same on all ranks of the group, see `models.layers.drawing`.
        """
        with self._forms(model), remembering(memory):
            return model(inputs, training=training)

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """Collective: return the sum over the group of something computed from each rank's logits."""
        return sum_over(x, self.group, "loss")

    def mean(self, layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
        """Collective: return the mean (C,) over pixels, of whole patches, of the input (B, rows, W, C) of a layer."""
        return self.places[layer.name].mean(x)

    @contextlib.contextmanager
    def _forms(self, model: keras.Model) -> Iterator[None]:
        """Let the layers of `model` run in their spatial form."""
        hidden = []
        try:
            for layer in model.layers:
                if layer.name in self.places:
                    hidden.append((layer, layer.__dict__.get("call")))
                    layer.call = _spatial_call(self.places[layer.name])  # hides the method
            yield
        finally:
            for layer, before in hidden:
                del layer.call
                if before is not None:
                    layer.call = before


def spatial_runner(model: keras.Model, height: int, group: Group) -> Spatial | None:
    """Return what runs `model` on this rank's strips of patches with `height` rows, None if it has whole patches.

    ValueError: there are more ranks than rows, or a layer has no spatial form.
    """
    if group.size == 1:
        return None
    return Spatial(model, Strips(strip_rows(height, group.size)), group)


def _spatial_call(place: Place) -> Any:
    form, call = form_of(place.layer), place.layer.call

    @functools.wraps(call)  # Keras looks at the arguments
    def spatial(inputs: Any, training: bool = False) -> tf.Tensor:
        y = form.call(place, call, inputs, training)
        start, stop = place.rows
        if y.shape[1] != stop - start:
            raise ValueError(f"layer {place.layer.name} gives {y.shape[1]} rows instead of {start} to {stop}")
        return y

    return spatial


def _places(model: keras.Model, strips: Strips, group: Group) -> Iterator[Place]:
    """Yield the place of each layer but the input. ValueError: a layer is used twice; exchanges have its name."""
    heights = {model.layers[0].name: strips.height}
    uses = Counter(node.layer.name for nodes in model._nodes_by_depth.values() for node in nodes)
    for name, count in uses.items():
        if count > 1:
            raise ValueError(f"layer {name} is used {count} times, which has no spatial form")
    for layer, names in with_inputs(model):
        inputs = tuple(heights[name] for name in names)
        heights[layer.name] = form_of(layer).height(layer, inputs)
        yield Place(layer, inputs, heights[layer.name], strips, group)
