"""Loads an exported model, after a look at whether its graph does more than compute.

A SavedModel is a program: TensorFlow has operations that write files, and one that writes to ~/.profile runs what it
likes at the next login. A graph that train.py or Keras exports reads its variables and computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

from utils.cli import UserError

GRAPH = "saved_model.pb"
# Of the operations with an effect, those that have one on the model's own variables only.
HARMLESS = {
    *("ReadVariableOp", "VarHandleOp", "AssignVariableOp", "VarIsInitializedOp"),
    *("PartitionedCall", "StatefulPartitionedCall", "If", "While", "NoOp", "Assert", "Placeholder"),
}
# TensorFlow counts these as without effect, but they read files, write to an address, or call Python.
HARMFUL = {"ReadFile", "MatchingFiles", "ImmutableConst", "GenerateVocabRemapping", "PyFuncStateless"}
DEBUG = "Debug"  # DebugIdentity and others send tensors to an address


def load_exported(folder: Path, trust: bool) -> Callable[[Any], Any]:
    """Return the model: images → class probabilities.

    UserError: it cannot be loaded, or its graph does more than compute and nobody says to `trust` it.
    """
    try:
        effects = [] if trust else effects_of(SavedModel.FromString((folder / GRAPH).read_bytes()))
    except (OSError, DecodeError) as error:
        raise UserError(f"{folder / GRAPH} cannot be loaded: {error}") from error
    if effects:
        raise UserError(
            f"{folder / GRAPH} does more than compute: it has {', '.join(effects)}, with which a model can read or "
            "write any file or run code. It is loaded with --trust_weights only: give that if you know who made it"
        )
    try:
        model: Callable[[Any], Any] = tf.saved_model.load(str(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    return model


def effects_of(model: SavedModel) -> list[str]:
    """Return the operations that a graph may run and that do more than compute, sorted.

    What saves the model's variables is not run, so only what its functions call counts.
    """
    library: dict[str, Iterable[NodeDef]] = {}
    pending: list[str] = []
    for graph in model.meta_graphs:
        library.update({f.signature.name: f.node_def for f in graph.graph_def.library.function})
        if len(model.meta_graphs) == 1 and graph.HasField("object_graph_def"):
            pending += graph.object_graph_def.concrete_functions
        else:  # TensorFlow 1 runs what is in the graph itself
            pending += _named_by(graph.graph_def.node)
    called: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in called:
            called.add(name)
            pending += _named_by(library.get(name, ()))
    return sorted(name for name in called if _has_effect(name, name in library))


def _named_by(nodes: Iterable[NodeDef]) -> Iterator[str]:
    """Yield all that nodes may run: their operations, and the functions among their attributes."""
    for node in nodes:
        yield node.op
        yield from _functions_in(node.attr.values())


def _functions_in(attributes: Iterable[AttrValue]) -> Iterator[str]:
    for value in attributes:
        for function in (value.func, *value.list.func):
            if function.name:
                yield function.name
                yield from _functions_in(function.attr.values())


def _has_effect(name: str, is_function: bool) -> bool:
    operation = op_def_registry.get(name)
    if operation is None:
        return not is_function
    effect = operation.is_stateful and name not in HARMLESS
    return effect or name in HARMFUL or name.startswith(DEBUG)
