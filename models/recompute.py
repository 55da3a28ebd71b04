"""Gradient checkpointing by block (Chen et al., arXiv 1604.06174): activations are computed again, not kept.

`Recomputed` runs the layers of a model, with its variables, and gives the same logits and gradients. Only what
goes from one block to another is kept for the backward pass; there each block runs again, after all gradients of
the blocks behind it are there, so that the activations of one block at a time are in memory.
"""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.channel_parts import WHOLE, channel_parts, leading_expansion, only_channels
from models.layers import current_draw, drawing
from models.shapes import with_inputs

Tensors = dict[str, tf.Tensor]  # by the name of the layer that they come from
Memory = dict[str, Tensors]  # what runs of a block share, by the name of the block's first output
Run = Callable[..., Any]  # as `call_model`

PART = 8  # blocks whose inputs are kept at a time, where not those of all blocks are


def call_model(model: keras.Model, inputs: Any, training: bool, memory: Tensors | None = None) -> Any:
    """Return the outputs of `model`, run as Keras does.

    What runs of the same images may share is kept in `memory`, tensors (…, C) with the channels of the layer that they
    are of: here nothing.
    """
    return model(inputs, training=training)


@dataclass(frozen=True)
class Block:
    """Part of a functional model, as a model of its own with the same layers. Names are those of layers."""

    model: keras.Model
    inputs: list[str]
    outputs: list[str]
    parts: list[slice]  # the channels of its output that are computed at a time when it runs again


def split(model: keras.Model, block_of: Callable[[str], str]) -> list[Block]:
    """Return the blocks of `model` in an order in which they can run. `block_of` maps a layer's name to its block's."""
    # Index 0: a layer has one more input and output for each model that it is part of.
    (end,) = (layer.name for layer in model.layers if layer.get_output_at(0) is model.output)
    start = model.layers[0].name
    blocks_of, parts = _with_expansion(
        model, {layer.name: block_of(layer.name) for layer in model.layers[1:]}
    )
    members: dict[str, list[str]] = {}
    reads: dict[str, set[str]] = {}
    for layer, names in with_inputs(model):
        block = blocks_of[layer.name]
        members.setdefault(block, []).append(layer.name)
        reads.setdefault(block, set()).update(names)
    inputs = {block: sorted(reads[block].difference(members[block])) for block in members}
    needed = {end}.union(*inputs.values())
    before = {block: {blocks_of[name] for name in inputs[block] if name != start} for block in members}
    blocks = []
    for block in graphlib.TopologicalSorter(before).static_order():
        ends = inputs[block], [name for name in members[block] if name in needed]
        tensors = [[model.get_layer(name).get_output_at(0) for name in names] for names in ends]
        blocks.append(Block(keras.Model(*tensors), *ends, parts.get(block, [WHOLE])))
    return blocks


def _with_expansion(
    model: keras.Model, blocks_of: dict[str, str]
) -> tuple[dict[str, str], dict[str, list[slice]]]:
    """Make the first expansion of `model`, where the image is largest, a block of its own.

    Return the block of each layer, by their names, and the parts in which that block can run again.
    """
    members: dict[str, list[keras.layers.Layer]] = {}
    for layer in model.layers[1:]:
        members.setdefault(blocks_of[layer.name], []).append(layer)
    for block, layers in members.items():
        if expansion := leading_expansion(layers):
            own = f"{block}/expansion"
            return blocks_of | {layer.name: own for layer in expansion}, {own: channel_parts(expansion)}
    return blocks_of, {}


@contextlib.contextmanager
def _without_updates(norms: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Let batch norms use the batch's statistics without moving their averages a second time."""
    for norm in norms:
        norm.add_update = lambda updates: None  # hides the method by which Keras moves them
    try:
        yield
    finally:
        for norm in norms:
            del norm.add_update


class Recomputed:
    """`model` as a function (images, training) → logits whose gradient recomputes activations by block.

    `prepare` makes the model's input of the images (B, H, W, 3), which are kept as they are; it runs again too.
    With `sparse` not even what goes from block to block is kept: of every half of the blocks what comes before
    it is computed again, and so on until there are PART of them (Griewank, 1992), for log(blocks) forward passes.
    `run` runs a block, and may keep small tensors of its first run for the next ones. The largest
    expansion runs again a few channels at a time, see `models.channel_parts`. For graphs (tf.function): it is their
    control dependencies that keep the order.
    """

    def __init__(
        self,
        model: keras.Model,
        block_of: Callable[[str], str],
        prepare: Callable[[tf.Tensor], tf.Tensor],
        sparse: bool = False,
        run: Run = call_model,
    ) -> None:
        self.blocks = split(model, block_of)
        self.start, self.end = model.layers[0].name, self.blocks[-1].outputs[0]
        self.prepare, self.sparse, self.run = prepare, sparse, run
        self.norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]

    def __call__(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """Logits. Batch norm's averages move here, and not when activations are recomputed."""
        seed = current_draw()  # the gradient is traced when the step's `drawing` is over
        memory: Memory = {}

        @tf.custom_gradient
        def network(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            with drawing(seed):
                kept = self._forward(self.blocks, {self.start: images}, training, memory)

            def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable]) -> tuple[None, list[Any]]:
                with drawing(seed), _without_updates(self.norms):
                    backward = _Backward(self, training, memory, {self.end: upstream})
                    backward.run(self.blocks, {self.start: images} if self.sparse else kept)
                return None, backward.gradients_of(variables)

            return kept[self.end], gradient

        return network(images)

    def _forward(self, blocks: Sequence[Block], tensors: Tensors, training: bool, memory: Memory) -> Tensors:
        """Return `tensors` and all outputs of `blocks`."""
        tensors = dict(tensors)
        for block in blocks:
            tensors.update(zip(block.outputs, self.outputs(block, tensors, training, memory)))
        return tensors

    def outputs(
        self, block: Block, tensors: Tensors, training: bool, memory: Memory, channels: slice = WHOLE
    ) -> list[tf.Tensor]:
        """Return the outputs of a block, or only these channels of them."""
        inputs = [self.prepare(tensors[n]) if n == self.start else tensors[n] for n in block.inputs]
        of_block = memory.setdefault(block.outputs[0], {})
        if channels != WHOLE:
            of_block = {name: x[..., channels] for name, x in of_block.items()}
        return tf.nest.flatten(self.run(block.model, inputs, training, of_block))


class _Backward:
    """One backward pass. `gradients`: of what comes out of blocks that were not run backward yet."""

    def __init__(self, network: Recomputed, training: bool, memory: Memory, gradients: Tensors) -> None:
        self.network, self.training, self.memory, self.gradients = network, training, memory, gradients
        self.of_variables: dict[Any, tf.Tensor] = {}
        self.last = list(gradients.values())  # the newest gradients: nothing runs again before they are there

    def run(self, blocks: Sequence[Block], kept: Tensors) -> None:
        """Run `blocks` backward. `kept` has all that they read or, if sparse, what the first ones read."""
        if self.network.sparse and len(blocks) > PART:
            half = len(blocks) // 2
            tensors = self._forward(blocks[:half], kept)
            needed = {name for block in blocks[half:] for name in block.inputs}
            self.run(blocks[half:], {name: x for name, x in tensors.items() if name in needed})
            self.run(blocks[:half], kept)
            return
        if self.network.sparse:
            kept = self._forward(blocks, kept)
        for block in reversed(blocks):
            self._run_block(block, {name: kept[name] for name in block.inputs})

    def _forward(self, blocks: Sequence[Block], kept: Tensors) -> Tensors:
        return self.network._forward(blocks, self._again(kept), self.training, self.memory)

    def _again(self, tensors: Tensors) -> Tensors:
        """Return the same tensors, but not before the newest gradients are there.

        So the activations of the last block are gone before those of the next one come, and what is computed from
        it is not merged with the forward pass by TensorFlow's optimizer of graphs.
        """
        with tf.control_dependencies(self.last):
            return {name: tf.identity(x) for name, x in tensors.items()}

    def _run_block(self, block: Block, tensors: Tensors) -> None:
        names = [name for name in block.inputs if name != self.network.start]
        variables = block.model.trainable_variables
        upstream = [self.gradients.pop(name) for name in block.outputs]
        found: list[tf.Tensor | None] = [None] * (len(names) + len(variables))
        for channels in block.parts:
            inputs = self._again(tensors)
            with tf.GradientTape() as tape, only_channels(block.model.layers[1:], channels):
                tape.watch([inputs[name] for name in names])
                outputs = self.network.outputs(block, inputs, self.training, self.memory, channels)
            sources = [*(inputs[name] for name in names), *variables]
            more = tape.gradient(outputs, sources, [x[..., channels] for x in upstream])
            found = [a if b is None else b if a is None else a + b for a, b in zip(found, more)]
            self.last = [gradient for gradient in found if gradient is not None]
        for name, gradient in zip(names, found):
            if gradient is not None:  # else only the tensor's shape is used
                self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient
        self.of_variables.update((_key(v), g) for v, g in zip(variables, found[len(names) :]))

    def gradients_of(self, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
        """Return the gradients in the order of `variables`. RuntimeError if one is missing."""
        found = [self.of_variables.get(_key(variable)) for variable in variables]
        missing = [v.name for v, gradient in zip(variables, found) if gradient is None]
        if missing:
            raise RuntimeError(
                f"recomputation gives no gradient for {len(missing)} variables, {missing[0]} first"
            )
        return found


def _key(variable: tf.Variable) -> Any:
    """Return what a variable is found by, whichever object stands for it.

    In mixed precision Keras hands out the same variable as itself and wrapped into an AutoCastVariable, and the two
    have different references.
    """
    return getattr(variable, "_variable", variable).ref()
