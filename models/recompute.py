"""Gradient checkpointing by block (Chen et al., arXiv 1604.06174): activations are computed again, not kept.

`recomputed(model)` runs the layers of `model`, with its variables, and gives the same logits and gradients. Only
what goes from one block to another is kept for the backward pass; there each block is run again, after all of
the gradients of the blocks behind it are there, so that the activations of one block are in memory at a time.
"""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import tensorflow as tf
import tf_keras as keras

from models.layers import current_draw, drawing, without_updates

Tensors = dict[str, tf.Tensor]  # by the name of the layer that they come from


@dataclass(frozen=True)
class Block:
    """Part of a functional model, as a model of its own with the same layers. Names are those of layers."""

    model: keras.Model
    inputs: list[str]
    outputs: list[str]

    def __call__(self, tensors: Sequence[tf.Tensor], training: bool) -> list[tf.Tensor]:
        return tf.nest.flatten(self.model(list(tensors), training=training))


def split(model: keras.Model, block_of: Callable[[str], str]) -> list[Block]:
    """The blocks of `model` in an order in which they can run. `block_of`: a layer's name → its block's."""
    # Index 0: a layer has one more input and output for each model that it is part of.
    layers = {id(layer.get_output_at(0)): layer for layer in model.layers}
    start, end = model.layers[0].name, layers[id(model.output)].name
    members: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}  # layers that a layer reads
    for layer in model.layers[1:]:
        members.setdefault(block_of(layer.name), []).append(layer.name)
        sources[layer.name] = [layers[id(x)].name for x in tf.nest.flatten(layer.get_input_at(0))]
    reads = {
        block: list(dict.fromkeys(s for name in names for s in sources[name] if s not in names))
        for block, names in members.items()
    }
    needed = {end}.union(*reads.values())
    before = {block: {block_of(s) for s in inputs if s != start} for block, inputs in reads.items()}
    blocks = []
    for block in graphlib.TopologicalSorter(before).static_order():
        outputs = [name for name in members[block] if name in needed]
        ends = [[model.get_layer(name).get_output_at(0) for name in names] for names in (reads[block], outputs)]
        blocks.append(Block(keras.Model(*ends, name=block.replace("/", "_")), reads[block], outputs))
    return blocks


def recomputed(
    model: keras.Model, block_of: Callable[[str], str], prepare: Callable[[tf.Tensor], tf.Tensor] = tf.identity
) -> Callable[[tf.Tensor, bool], tf.Tensor]:
    """`model` as a function (images, training) → logits whose gradient recomputes activations.

    `prepare` makes the model's input of images (B, H, W, 3); they are kept as they are, and it is run again.
    Inside a tf.function only: it is the graph's control dependencies that keep the order.
    """
    blocks = split(model, block_of)
    start, end = blocks[0].inputs[0], blocks[-1].outputs[0]

    def run(block: Block, kept: Tensors, training: bool) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        inputs = [prepare(kept[name]) if name == start else kept[name] for name in block.inputs]
        return inputs, block(inputs, training)

    def forward(images: tf.Tensor, training: bool) -> tf.Tensor:
        seed = current_draw()  # the gradient is traced when the step's `drawing` is over

        @tf.custom_gradient
        def network(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            kept = {start: images}
            with drawing(seed):
                for block in blocks:
                    kept.update(zip(block.outputs, run(block, kept, training)[1]))

            def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable]) -> tuple[None, list[Any]]:
                with drawing(seed), without_updates():
                    found = backward(kept, upstream, training)
                return None, [found.get(variable.ref()) for variable in variables]

            return kept[end], gradient

        return network(images)

    def backward(kept: Tensors, upstream: tf.Tensor, training: bool) -> dict[Any, tf.Tensor]:
        gradients, of_variables, last = {end: upstream}, {}, [upstream]
        for block in reversed(blocks):
            # All of the last block's gradients first: so its activations are gone, and no optimizer of graphs
            # can take this run for that of the forward pass.
            with tf.control_dependencies(last):
                again = {name: tf.identity(kept[name]) for name in block.inputs}
            variables = block.model.trainable_variables
            with tf.GradientTape() as tape:
                tape.watch([x for x in again.values() if x.dtype.is_floating])
                inputs, outputs = run(block, again, training)
            sources = [again[name] for name in block.inputs if name != start]
            found = tape.gradient(outputs, [*sources, *variables], [gradients.pop(n) for n in block.outputs])
            names = [name for name in block.inputs if name != start]
            for name, gradient in zip(names, found):
                if gradient is not None:
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient
            of_variables.update({v.ref(): g for v, g in zip(variables, found[len(names) :]) if g is not None})
            last = [gradient for gradient in found if gradient is not None]
        return of_variables

    return forward
