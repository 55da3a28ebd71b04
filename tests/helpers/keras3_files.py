"""Files of weights as Keras 3 writes them: real ones of its EfficientNet, and the same layouts for any model.

python -m tests.helpers.keras3_files FOLDER B0 [B4 ...]    with Keras 3, so without TF_USE_LEGACY_KERAS
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

KINDS = {
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
}


def write_efficientnet(folder: Path, name: str) -> None:
    """Write an EfficientNet with weights of chance in each of Keras 3's formats, and its arrays by layer as .npz."""
    import keras

    rng = np.random.default_rng(0)
    model = getattr(keras.applications, f"EfficientNet{name}")(weights=None, include_top=True)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    arrays = {
        f"{type(layer).__name__}/{layer.name}/{i}": np.asarray(value)
        for layer in model.layers
        for i, value in enumerate(layer.get_weights())
    }
    np.savez(folder / f"{name}.npz", **arrays)
    model.save(folder / f"{name}.keras")
    if name != "B0":
        return
    model.save_weights(folder / f"{name}.weights.h5")
    model.save(folder / f"{name}.h5")
    features = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    features.set_weights(model.get_weights()[: len(features.get_weights())])
    tuned = keras.Sequential([features, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    tuned.compile("adam", "mse")
    tuned.optimizer.build(tuned.trainable_variables)
    tuned.save(folder / "tuned.keras")
    tuned.save(folder / "tuned.h5")
    model.export(folder / "exported", verbose=False)


def write_as_keras3(model: Any, path: Path) -> Path:
    """Write a Keras 2 model's weights to a .h5, .weights.h5 or .keras file in the layout of Keras 3."""
    if path.suffix == ".keras":
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            _write_counted(model, file)
        layers = [
            {"class_name": type(layer).__name__, "config": {"name": layer.name}} for layer in model.layers
        ]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
            archive.writestr("model.weights.h5", content.getvalue())
        return path
    with h5py.File(path, "w") as file:
        (_write_counted if path.name.endswith(".weights.h5") else _write_named)(model, file)
    return path


def _write_counted(model: Any, file: h5py.File) -> None:
    numbers: dict[str, int] = {}
    for layer in model.layers:
        kind = KINDS.get(type(layer).__name__, "other")
        number = numbers[kind] = numbers.get(kind, -1) + 1
        group = file.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
        group.attrs["name"] = layer.name
        for i, value in enumerate(layer.get_weights()):
            group[str(i)] = value


def _write_named(model: Any, file: h5py.File) -> None:
    file.attrs["layer_names"] = [layer.name for layer in model.layers]
    for layer in model.layers:
        group = file.create_group(layer.name)
        endings = [variable.name.rpartition("/")[2].partition(":")[0] for variable in layer.weights]
        names = [f"{layer.name}/{ending.replace('depthwise_kernel', 'kernel')}" for ending in endings]
        group.attrs["weight_names"] = names
        for name, value in zip(names, layer.get_weights()):
            group[name] = value


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        write_efficientnet(Path(sys.argv[1]), wanted)
