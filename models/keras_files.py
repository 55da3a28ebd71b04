"""Reads variables out of Keras files as plain data: no layer is built from them, so no code that a file holds can run.

There are three kinds. An .h5 names its layers and their variables; a whole model has them in `model_weights`. A
.weights.h5 counts the layers of each class, `layers/conv2d_3/vars/0`; Keras has written their names beside them
since 3.6. A .keras is a zip archive of such a file and config.json, which names the layers in the same order.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from models.weight_files import CONFIG, WEIGHTS, Stored, WeightsError, read_member

# Variables of a layer in the order in which a .weights.h5 counts them. A bias may be missing.
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "conv2d_transpose": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "fast_fusion": ("WSM", "WSM_1", "WSM_2"),
}
MAY_LACK_THE_LAST = ("bias", "WSM_2")
MAX_DEPTH = 32  # of groups within groups
MAX_CHUNK = 1 << 28  # bytes that HDF5 unpacks at once

LayerPath = str  # "layers/conv2d_3": where a .weights.h5 has a layer


@contextlib.contextmanager
def open_keras(file: Path) -> Iterator[dict[str, Stored]]:
    """Yield the file's variables by "<layer>/<variable>", to be read inside of the `with` block.

    Layers that have no name in the file have their place instead, "layers/conv2d_3". WeightsError: it is no such file.
    """
    names: dict[LayerPath, str] = {}
    source: Path | io.BytesIO = file
    if not h5py.is_hdf5(file):
        if not zipfile.is_zipfile(file):
            raise WeightsError(
                f"{file}: is neither an HDF5 file, nor a .keras archive, nor a TensorFlow checkpoint"
            )
        try:
            names = layer_paths(json.loads(read_member(file, CONFIG)))
        except RecursionError as error:
            raise WeightsError(f"{file}: {CONFIG} in it is nested too deeply") from error
        source = io.BytesIO(read_member(file, WEIGHTS))
    with h5py.File(source, "r") as content:
        root = _child(content, "model_weights") if "model_weights" in content else content
        if _has(root, "layer_names"):
            yield _of_named_layers(root)
        else:
            yield _of_counted_layers(content, names)


def layer_paths(config: Any, within: str = "") -> dict[LayerPath, str]:
    """Return {place of a layer in a .weights.h5: its name} from the configuration of a model, and of models in it."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list):
        return {}
    layers = [layer for layer in layers if isinstance(layer, dict) and isinstance(layer.get("config"), dict)]
    named = [(str(layer.get("class_name")), str(layer["config"].get("name"))) for layer in layers]
    paths = counted(named, within)
    for layer, path in zip(layers, paths):
        paths = {**paths, **layer_paths(layer, f"{path}/")}
    return paths


def counted(layers: Iterable[tuple[str, str]], within: str = "") -> dict[LayerPath, str]:
    """Return {place: name} of layers (class, name) of one model, in Keras's order; `within`: the model's own place."""
    numbers: dict[str, int] = {}
    paths = {}
    for class_name, name in layers:
        # As Keras makes "separable_conv2d" of SeparableConv2D.
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", class_name)).lower()
        kind = _plain_kind(kind)
        number = numbers[kind] = numbers.get(kind, -1) + 1
        paths[f"{within}layers/{kind}_{number}" if number else f"{within}layers/{kind}"] = name
    return paths


def kind_of(path: LayerPath) -> str:
    """Return the class of the layer at this place: "conv2d"."""
    return re.sub(r"_\d+$", "", path.rpartition("/")[2])


def _plain_kind(kind: str) -> str:
    return kind.replace("sync_batch_normalization", "batch_normalization")  # Horovod's has the same variables


def _of_named_layers(root: h5py.Group) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    for layer in _strings(root, "layer_names"):
        group = _inside(root, layer)
        weights = _strings(group, "weight_names")
        # By the layer's name, as files count variables their own way; in a model within a model endings repeat.
        endings = [weight.rpartition("/")[2] for weight in weights]
        plain = len(set(endings)) == len(endings)
        for weight, ending in zip(weights, endings):
            name = f"{layer}/{ending}" if plain else f"{layer}/{weight}"
            stored[name] = _stored(name, _inside(group, weight))
    return stored


def _of_counted_layers(content: h5py.File, names: dict[LayerPath, str]) -> dict[str, Stored]:
    """`names`: of layers that have none in the file itself. Where two models in it share a name, places say which."""
    found: dict[str, list[tuple[LayerPath, str, h5py.Dataset]]] = {}
    for path, group in _layers(content, "", set()):
        variables = sorted(_children(group), key=lambda child: (len(child[0]), child[0]))
        name = names.get(path) or _text(group.attrs.get("name")) or path
        for (_, dataset), ending in zip(variables, _variable_names(path, [key for key, _ in variables])):
            found.setdefault(f"{name}/{ending}", []).append((path, ending, dataset))
    stored: dict[str, Stored] = {}
    for name, places in found.items():
        for path, _, dataset in places:
            full = name if len(places) == 1 else f"{path}/{name}"
            stored[full] = _stored(full, dataset)
    return stored


def _layers(group: h5py.Group, path: LayerPath, seen: set[int]) -> Iterator[tuple[LayerPath, h5py.Group]]:
    """Yield the layers below a group, each with its place and the group of its variables, but not the optimizer."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or path.count("/") > MAX_DEPTH:
        raise ValueError(f"its group {path} is in itself, or too deep")
    seen.add(address)
    for name, child in _children(group):
        if name == "vars" and isinstance(child, h5py.Group):
            yield path, child
        elif isinstance(child, h5py.Group) and not name.startswith("optimizer"):
            # What Keras 3 calls "layers" is "_layer_checkpoint_dependencies" in files of Keras 2.
            part = _plain_kind("layers" if name == "_layer_checkpoint_dependencies" else name)
            yield from _layers(child, f"{path}/{part}" if path else part, seen)


def _variable_names(path: LayerPath, keys: list[str]) -> list[str]:
    """Return the names of a layer's variables, or their numbers if they are not those that its class has."""
    known = VARIABLES.get(kind_of(path), ())
    whole = len(keys) == len(known) or (
        known and known[-1] in MAY_LACK_THE_LAST and len(keys) == len(known) - 1
    )
    return list(known[: len(keys)]) if whole else keys


def _children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    for name in group:
        yield name, _child(group, name)


def _inside(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    found = group
    for name in path.split("/"):
        if not isinstance(found, h5py.Group):
            raise ValueError(f"{path} is missing")
        found = _child(found, name)
    return found


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a member of the group. Keras writes no links, and one could lead to any other file of this machine."""
    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{name} is missing in {group.name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"its {name} is a link to somewhere else, which is not followed")
    return group[name]


def _stored(name: str, dataset: h5py.Group | h5py.Dataset) -> Stored:
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the values of its {name} are in another file, which is not read")
    return Stored(name, tuple(dataset.shape or ()), lambda: _values(name, dataset))


def _values(name: str, dataset: h5py.Dataset) -> np.ndarray:
    chunk = int(np.prod(dataset.chunks or (), dtype=np.int64)) * dataset.dtype.itemsize
    if chunk > max(MAX_CHUNK, dataset.nbytes):
        raise ValueError(f"{name} is stored in pieces of {chunk} bytes, but it has {dataset.nbytes}")
    if dataset.dtype == np.dtype("V2"):  # how h5py stores bfloat16: the upper half of a float32
        return (np.asarray(dataset).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of type {dataset.dtype}, but weights are numbers")
    return np.asarray(dataset)


def _has(group: h5py.Group, key: str) -> bool:
    return key in group.attrs or f"{key}0" in group.attrs


def _strings(group: h5py.Group | h5py.Dataset, key: str) -> list[str]:
    """Return a list of names; Keras spreads those above 64 kB over `<key>0`, `<key>1`, …"""
    if not _has(group, key):
        raise ValueError(f"no {key} in {group.name}")
    chunks = [key] if key in group.attrs else [k for k in group.attrs if re.fullmatch(rf"{key}\d+", k)]
    chunks.sort(key=lambda chunk: int(re.sub(r"\D", "", chunk) or 0))
    return [_text(name) for chunk in chunks for name in np.atleast_1d(group.attrs[chunk])]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name or "")
