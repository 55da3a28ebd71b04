"""Loads weights from public files and our own, by name, and says what was loaded and what was not."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

import models.deeplab  # noqa: F401  (registers the layers that a .keras file may name)
from models.weight_files import WeightsError, find_weights, guess_model
from models.weight_names import CLASS_LAYERS, block_of, common_names

SHOWN = 5  # names in a message
EMA = "/ExponentialMovingAverage"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class Stored:
    """A variable in a file."""

    key: str  # in the file; a variable can have more than one name
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`. Names of variables are the model's, but those in `unused` are the file's."""

    path: Path
    loaded: tuple[str, ...]
    random: tuple[str, ...]  # keep the values they had
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.random)
        text = f"{self.path}: loaded {len(self.loaded)} of {total} variables"
        if self.random:
            text += f"; random stay {_summary(self.random)}"
        if self.unused:
            text += f"; not used of the file: {_summary(self.unused)}"
        return text


def load_weights(model: keras.Model, path: str | Path) -> LoadReport:
    """Sets the model's variables from `path`: a file, a checkpoint's prefix, or a folder that holds one.

    Takes the Keras .h5 of DeepLabV3+, the published EfficientDet checkpoints (their moving averages if there
    are any), Keras-applications EfficientNet .h5 for the backbone, and our own checkpoints, .h5, .keras and
    exported models. A BiFPN may start at another level than the file's: levels are matched by stride. The
    layer of the classes stays random if the number of classes differs.

    WeightsError if nothing fits, if a shape disagrees, or if the file has more backbone than the model.
    """
    weights = find_weights(path)
    with _errors_name(weights):
        if _is_positional(weights):
            model.load_weights(weights)
            return LoadReport(weights, tuple(variable.name for variable in model.variables), (), ())
        stored = _read_keras(weights) if weights.is_file() else _read_checkpoint(weights)
    variables = {variable.name: variable for variable in model.variables}
    matches, wrong = _match(stored, variables)
    if wrong or not matches:
        raise WeightsError(_explain(weights, model.name, wrong))
    with _errors_name(weights):
        values = {name: value.read() for name, value in matches.items()}
    for name, value in values.items():
        variables[name].assign(value.astype(variables[name].dtype.as_numpy_dtype))
    used = {value.key for value in matches.values()}
    unused = {value.key: name for name, value in stored.items() if value.key not in used}
    return LoadReport(
        weights,
        loaded=tuple(name for name in variables if name in matches),
        random=tuple(name for name in variables if name not in matches),
        unused=tuple(sorted(unused.values())),
    )


def _match(
    stored: dict[str, Stored], variables: dict[str, tf.Variable]
) -> tuple[dict[str, Stored], list[str]]:
    """Match the file's variables to the model's by name; also return what disagrees."""
    in_file, in_model = common_names(stored), common_names(variables)
    matches: dict[str, Stored] = {}
    wrong = []
    for common in in_file.keys() & in_model.keys():
        name, value = in_model[common], stored[in_file[common]]
        shape = tuple(variables[name].shape)
        if value.shape == shape:
            matches[name] = value
        elif not common.startswith(CLASS_LAYERS):
            wrong.append(f"{in_file[common]} is {value.shape}, the model's {shape}")
    blocks = {block_of(common) for common in in_model}
    wrong += [
        f"{in_file[c]} is of a block that the model lacks" for c in in_file if block_of(c) not in blocks
    ]
    return matches, sorted(wrong)


@contextlib.contextmanager
def _errors_name(weights: Path) -> Iterator[None]:
    """Errors of the libraries that read `weights`, as an error that names it."""
    try:
        yield
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise WeightsError(f"{weights}: cannot be read as weights of this model ({error})") from error


def _explain(weights: Path, model_name: str, wrong: list[str]) -> str:
    model = guess_model(weights)
    hint = f" (its names are those of {model})" if model and model != model_name else ""
    if not wrong:
        return f"{weights}: fits nothing of {model_name}{hint}"
    return f"{weights}: {len(wrong)} variables do not fit {model_name}{hint}: {_first(wrong, '; ')}"


def _read_keras(file: Path) -> dict[str, Stored]:
    """Variables of an .h5 or .keras file by "<layer>/<variable>"."""
    if file.suffix == ".keras":
        return _of_layers(keras.models.load_model(file, compile=False))
    stored: dict[str, Stored] = {}
    with h5py.File(file) as content:
        root = content.get("model_weights", content)
        for layer in _strings(root, "layer_names"):
            weights = _strings(root[layer], "weight_names")
            # By layer name, as files count variables their own way; in a model within a model endings repeat.
            endings = [weight.rpartition("/")[2] for weight in weights]
            plain = len(set(endings)) == len(endings)
            for weight, ending in zip(weights, endings):
                value = np.asarray(root[layer][weight])
                stored[f"{layer}/{ending}" if plain else weight] = Stored(
                    weight, value.shape, functools.partial(np.asarray, value)
                )
    return stored


def _is_positional(file: Path) -> bool:
    """Return whether this .h5 holds variables by place only (.weights.h5), so that Keras has to load it."""
    if not file.is_file() or file.suffix == ".keras":
        return False
    with h5py.File(file) as content:
        return "layers" in content and "layer_names" not in content.attrs


def _strings(group: h5py.Group, key: str) -> list[str]:
    """Return a list of names; Keras spreads those above 64 kB over `<key>0`, `<key>1`, …"""
    chunks = [key] if key in group.attrs else sorted(k for k in group.attrs if re.fullmatch(rf"{key}\d+", k))
    if not chunks:
        raise KeyError(f"no {key} in {group.name}: not a file of Keras weights with layer names")
    chunks.sort(key=lambda chunk: int(re.sub(r"\D", "", chunk) or 0))
    names = [name for chunk in chunks for name in group.attrs[chunk]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _of_layers(model: keras.Model) -> dict[str, Stored]:
    """Go layer by layer, since a variable that Keras rebuilds from a .keras file may lack its layer's name."""
    stored: dict[str, Stored] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            stored.update(_of_layers(layer))
            continue
        for variable in layer.weights:
            name = f"{layer.name}/{variable.name.rpartition('/')[2]}"
            stored[name] = Stored(name, tuple(variable.shape), variable.numpy)
    return stored


def _read_checkpoint(prefix: Path) -> dict[str, Stored]:
    """Return the variables of a TensorFlow checkpoint, name- or object-based, with moving averages in their place."""
    reader = tf.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    if OBJECT_GRAPH in shapes:
        graph = TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH))
        keys = _names_of_objects(graph)
    else:
        keys = {name: name for name in shapes}
    for name in [name for name in keys if name.endswith(EMA)]:
        keys[name[: -len(EMA)]] = keys.pop(name)
    return {
        name: Stored(key, tuple(shapes[key]), functools.partial(reader.get_tensor, key))
        for name, key in keys.items()
        if key in shapes
    }


def _names_of_objects(graph: TrackableObjectGraph) -> dict[str, str]:
    """{name: key in the checkpoint}; a variable is known by its own name and by its path of attributes."""
    keys: dict[str, str] = {}
    for node in graph.nodes:
        for attribute in node.attributes:
            path = (
                attribute.checkpoint_key.partition("/.ATTRIBUTES/")[0].replace(".S", "/").replace("..", ".")
            )
            keys.setdefault(path, attribute.checkpoint_key)
            if attribute.full_name:
                keys.setdefault(attribute.full_name, attribute.checkpoint_key)
    return keys


def _summary(names: Iterable[str]) -> str:
    """Return the layers of variables or, where there are many, the network's parts and their numbers of variables."""
    names = list(names)
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
    if len(layers) <= SHOWN:
        return ", ".join(layers)
    parts = Counter(name.partition("/")[0] for name in names)
    return _first([f"{part} ({count} variables)" for part, count in parts.items()])


def _first(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}… ({len(names)} in all)" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more
