"""Loads weights from public files and our own, by name, and says what was loaded and what was not."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from models.catalog import MODELS, EfficientDetRow
from models.efficientnet import STAGES, block_plan, round_repeats
from models.keras_files import LayerPath, counted, kind_of, open_keras
from models.weight_files import Stored, WeightsError, find_weights, guess_model
from models.weight_matches import match
from models.weight_names import BACKBONE, common_names

SHOWN = 5  # names in a message
EMA = "/ExponentialMovingAverage"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`. Names of variables are the model's, but those in `unused` are the file's."""

    path: Path
    loaded: tuple[str, ...]
    random: tuple[str, ...]  # keep the values they had
    other_classes: tuple[str, ...]  # those of `random` that the file has for another number of classes
    unused: tuple[str, ...]
    backbone: int  # number of variables in it, which are all loaded

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.random)
        text = f"{self.path}: loaded {len(self.loaded)} of {total} variables"
        text += f", among them all {self.backbone} of the backbone" if self.backbone else ""
        new = [name for name in self.random if name not in self.other_classes]
        if self.other_classes:
            text += f"; random stay {_summary(self.other_classes)}: the file has another number of classes"
        if new:
            text += f"; random stay {_summary(new)}: {len(new)} variables of which the file has none"
        if self.unused:
            text += f"; not used of the file: {_summary(self.unused)}, for which the model has no place"
        return text


def load_weights(model: keras.Model, path: str | Path) -> LoadReport:
    """Sets the model's variables from `path`: a file, a checkpoint's prefix, or a folder that holds one.

    Takes the Keras .h5 of DeepLabV3+, the published EfficientDet checkpoints (their moving averages if there
    are any), EfficientNet files of Keras 2's and 3's applications for the backbone, and our own checkpoints, .h5,
    .keras and exported models. A BiFPN may start at another level than the file's: levels are matched by stride.
    The layer of the classes stays random if the number of classes differs. Files are read as data: no code that
    one may hold is run.

    WeightsError if nothing fits, if a shape disagrees, if the backbone is not there whole, or see `match`.
    """
    weights = find_weights(path)
    variables = {variable.name: variable for variable in model.variables}
    with _errors_name(weights), _opened(weights) as stored:
        stored = _named_by_place(stored, model)
        matches = match(stored, {name: tuple(variable.shape) for name, variable in variables.items()})
        if matches.wrong or not matches.values:
            raise WeightsError(_explain(weights, model.name, matches.wrong, stored))
        values = {name: _numbers(value) for name, value in matches.values.items()}
    for name, value in values.items():
        variables[name].assign(value.astype(variables[name].dtype.as_numpy_dtype))
    used = {value.key for value in matches.values.values()}
    used |= {stored[name].key for name in matches.other_classes.values()}
    unused = {value.key: name for name, value in stored.items() if value.key not in used}
    return LoadReport(
        weights,
        loaded=tuple(name for name in variables if name in values),
        random=tuple(name for name in variables if name not in values),
        other_classes=tuple(name for name in variables if name in matches.other_classes),
        unused=tuple(sorted(unused.values())),
        backbone=len(matches.backbone),
    )


@contextlib.contextmanager
def _opened(weights: Path) -> Iterator[dict[str, Stored]]:
    if not weights.is_file():
        yield _read_checkpoint(weights)
        return
    with open_keras(weights) as stored:
        yield stored


@contextlib.contextmanager
def _errors_name(weights: Path) -> Iterator[None]:
    """Errors of the libraries that read `weights`, as an error that names it."""
    try:
        yield
    except WeightsError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise WeightsError(f"{weights}: cannot be read as weights of this model ({error})") from error


def _numbers(value: Stored) -> np.ndarray:
    array = value.read()
    if array.dtype == object:  # TensorFlow's strings
        raise ValueError(f"{value.key} holds no numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{value.key} has values that are infinite or not a number")
    return array


def _explain(weights: Path, model_name: str, wrong: list[str], stored: dict[str, Stored]) -> str:
    models = [model] if (model := guess_model(weights)) else _models_of_backbone(stored)
    hint = f" (its names and shapes are those of {' and '.join(models)})" if models else ""
    if model_name in models:
        hint = ""
    if wrong:
        return f"{weights}: {len(wrong)} variables do not fit {model_name}{hint}: {_first(wrong, '; ')}"
    if any(name.startswith("layers/") for name in stored):
        hint += (
            ". Its layers have no names and are not those of this model: Keras 3.6 and later write the names"
        )
    return f"{weights}: fits nothing of {model_name}{hint}"


def _models_of_backbone(stored: dict[str, Stored]) -> list[str]:
    """Return the models whose EfficientNet is as deep and as wide as that of the file."""
    names = common_names(stored)
    blocks = len({match[0] for name in names if (match := re.match(rf"{BACKBONE}blocks_\d+/", name))})
    last = names.get(f"{BACKBONE}blocks_{blocks - 1}/conv2d_1/kernel")
    plans = {
        name: block_plan(row.width, row.depth)
        for name, row in MODELS.items()
        if isinstance(row, EfficientDetRow)
    }
    return [
        name
        for name, plan in plans.items()
        if last and len(plan) == blocks and stored[last[0]].shape[-1:] == (plan[-1].filters,)
    ]


def _named_by_place(stored: dict[str, Stored], model: keras.Model) -> dict[str, Stored]:
    """Name the layers that have only a place in the file, "layers/conv2d_3", if they are of this model or EfficientNet.

    They are if the file has as many layers of each class as that network. Others keep their places.
    """
    places: dict[
        str, Counter[str]
    ] = {}  # of each model in the file: its place and the number of layers of each class
    for path in {name.rpartition("/")[0] for name in stored if name.startswith("layers/")}:
        places.setdefault(path.rpartition("/")[0], Counter())[kind_of(path)] += 1
    own = counted((type(layer).__name__, layer.name) for layer in model.layers)
    with_variables = {layer.name for layer in model.layers if layer.weights}
    networks = [{path: name for path, name in own.items() if name in with_variables}, *_efficientnets()]
    names: dict[LayerPath, str] = {}
    for place, found in places.items():
        for network in networks:
            kinds = Counter(kind_of(path) for path in network)
            if all(found[kind] == number for kind, number in kinds.items()):
                names.update({f"{place}/{path.rpartition('/')[2]}": name for path, name in network.items()})
                break
    return {
        f"{names.get(path, path)}{slash}{variable}": value
        for name, value in stored.items()
        for path, slash, variable in [name.rpartition("/")]
    }


def _efficientnets() -> Iterator[dict[LayerPath, str]]:
    """Yield the layers of each EfficientNet of Keras applications, as far as a backbone has them, by their places."""
    for depth in sorted({row.depth for row in MODELS.values() if isinstance(row, EfficientDetRow)}):
        convs, depthwise, norms = ["stem_conv"], [], ["stem_bn"]
        for number, stage in enumerate(STAGES, 1):
            for j in range(round_repeats(stage.repeats, depth)):
                block, expands = f"block{number}{chr(ord('a') + j)}", stage.expand != 1
                convs += [f"{block}_expand_conv"] * expands
                convs += [f"{block}_{layer}" for layer in ("se_reduce", "se_expand", "project_conv")]
                depthwise.append(f"{block}_dwconv")
                norms += [f"{block}_expand_bn"] * expands + [f"{block}_bn", f"{block}_project_bn"]
        layers = {
            "Conv2D": [*convs, "top_conv"],
            "DepthwiseConv2D": depthwise,
            "BatchNormalization": [*norms, "top_bn"],
        }
        yield counted((kind, name) for kind, names in layers.items() for name in names)


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
