"""Finds and loads the model to predict with: from a run's folder, a checkpoint or an exported model.

TensorFlow is imported only when a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import CLASSES_FILE
from models.catalog import MODELS
from models.from_options import AUTO, NETWORK_OPTIONS, network_from_options, set_precision
from samplers.labels.label_map import class_names
from training.resume import read_options
from utils.cli import UserError
from utils.cpu import computes_bfloat16

EXPORTED, STATE = "saved_model.pb", "state.json"


@dataclass(frozen=True)
class ModelSource:
    """The place of a model, and how it was trained."""

    path: Path  # of the SavedModel or of the checkpoint
    options: dict[str, Any]  # of the training run; empty if options.json is not beside it

    @property
    def is_exported(self) -> bool:
        return (self.path / EXPORTED).exists()

    def class_names(self, classes: int) -> list[list[str]]:
        """Return the names of each class: those kept with an exported model, else those of the training's label map.

        UserError: what is kept cannot be read, or is not of this number of classes.
        """
        path = self.path / CLASSES_FILE
        if not path.exists():
            return class_names(self.options.get("label_map"), classes)
        try:
            names = [[str(name) for name in group] for group in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if len(names) != classes or not all(names):
            raise UserError(f"{path} names {len(names)} classes, the model has {classes}")
        return names

    def identity(self) -> str:
        """Return a hash of the content of its files, wherever they lie. UserError: they cannot be read."""
        digest = hashlib.sha256()
        try:
            for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
                digest.update(str(path.relative_to(self.path)).encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 24):
                        digest.update(block)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error
        return digest.hexdigest()[:16]


def find_model(path: Path, precision: str | None) -> ModelSource:
    """Return the model at `path`: a log_dir, a checkpoint, the folder of all checkpoints, or an exported model.

    In a log_dir this is the exported model. It is the newest whole checkpoint where there is no export, or where
    `precision` is not that of the training. UserError: there is no model, or it cannot have this precision.
    """
    if not path.is_dir():
        raise UserError(f"--model_path {path}: there is no such folder")
    path = path.resolve()
    if (path / EXPORTED).exists():
        options = read_options(path.parent)
        exported = options.get("mixed_precision")
        if precision is not None and precision != exported:
            raise UserError(
                f"{path} is an exported model, which computes as it was exported ({exported or 'unknown'}). "
                f"For --mixed_precision {precision} give the log_dir or a checkpoint of its training run"
            )
        return ModelSource(path, options)
    if (path / STATE).exists():
        return ModelSource(path, _need_options(path.parent.parent))
    log_dir = path.parent if path.name == "checkpoints" else path
    options = read_options(log_dir)
    other = precision is not None and precision != options.get("mixed_precision")
    if path == log_dir and (path / "model" / EXPORTED).exists() and not other:
        return ModelSource(path / "model", options)
    checkpoints = sorted((log_dir / "checkpoints").glob("step_*"))
    if checkpoints:
        return ModelSource(_newest_whole(log_dir / "checkpoints"), _need_options(log_dir))
    if other and (path / "model" / EXPORTED).exists():
        raise UserError(f"{path} holds only an exported model: computing in {precision} takes a checkpoint")
    raise UserError(
        f"--model_path {path} holds no model: neither a log_dir, a checkpoint nor an exported model"
    )


def _need_options(folder: Path) -> dict[str, Any]:
    """Return the options of a run. UserError: they do not say which network to build for its checkpoints."""
    options = read_options(folder)
    path, missing = folder / "options.json", [name for name in NETWORK_OPTIONS if name not in options]
    if not path.exists():
        raise UserError(f"{path} is missing: without it no network can be built for the run's checkpoints")
    if missing or options["model"] not in MODELS:
        wrong = f"lacks {', '.join(missing)}" if missing else f"names the unknown model {options['model']}"
        raise UserError(f"{path} {wrong}: no network can be built for the run's checkpoints")
    return options


def _newest_whole(folder: Path) -> Path:
    from training.checkpoint import latest_checkpoint

    path, bad = latest_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} holds no whole checkpoint: {'; '.join(bad)}")
    return path


class Predictor:
    """Computes class probabilities of patches: uint8 RGB (B, size, size, 3) → float32 (B, planes, size, size).

    With two classes there is one plane, that of the second class; with more classes there is a plane for each.
    `classes` is their number. `tta` averages over flips and turns. UserError: the model cannot be loaded, or does not
    take patches of `size` pixels, or is exported and does more than compute and there is no `trust` in it.
    """

    deviates = False  # it is one model, see `PatchModel`

    def __init__(
        self, source: ModelSource, precision: str | None, size: int, tta: bool, trust: bool = False
    ) -> None:
        import tensorflow as tf

        from prediction.exported import load_exported

        precision = precision or source.options.get("mixed_precision")
        if source.is_exported:
            model = load_exported(source.path, trust)
            # Exported models compute in float32 by themselves.
            if precision == "bfloat16" and computes_bfloat16():
                tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
        else:
            model = _load_checkpoint(source, precision or AUTO)

        def planes(images: tf.Tensor) -> tf.Tensor:
            return planes_of(_averaged(model, images) if tta else model(images))

        try:  # Trace it now and not at the first slide. A batch of another size is not traced again.
            self._forward = with_constant_weights(planes, size)
            found = self(np.zeros((1, size, size, 3), np.uint8))
        except tf.errors.ResourceExhaustedError:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise UserError(
                f"{source.path} does not take patches of {size} × {size} pixels: {error}"
            ) from error
        self.planes = found.shape[1]
        self.classes = max(2, self.planes)
        if found.shape[2:] != (size, size):
            rows, columns = found.shape[2:]
            raise UserError(f"{source.path} returns {rows} × {columns} pixels for patches of {size} × {size}")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._forward(images)


def planes_of(probabilities: Any) -> Any:
    """Return class probabilities (B, H, W, C) as a `Predictor` gives them: float32 (B, planes, H, W)."""
    import tensorflow as tf

    if probabilities.shape[-1] == 2:
        probabilities = probabilities[..., 1:]
    return tf.transpose(tf.cast(probabilities, tf.float32), (0, 3, 1, 2))


def with_constant_weights(model: Callable[[Any], Any], size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model of uint8 RGB (B, size, size, 3) as a graph of its own, in which its weights are constants.

    So TensorFlow computes the kernels with batch norm in them (`models.folding`) once, and puts convolution, bias
    and activation together.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, size, size, 3), tf.uint8)
    function = tf.function(model, input_signature=[spec], autograph=False)
    graph = convert_variables_to_constants_v2(function.get_concrete_function())
    return lambda images: np.asarray(graph(tf.constant(images))[0])


def _averaged(model: Callable[[Any], Any], images: Any) -> Any:
    """Return the mean prediction over the eight flips and quarter turns of the images."""
    import tensorflow as tf

    total = 0.0
    for flipped in (False, True):
        for turns in range(4):
            turned = tf.image.rot90(tf.image.flip_left_right(images) if flipped else images, turns)
            back = tf.image.rot90(model(turned), -turns)
            total += tf.image.flip_left_right(back) if flipped else back
    return total / 8


def _load_checkpoint(source: ModelSource, precision: str) -> Callable[[Any], Any]:
    """Build the network of the options and load the checkpoint's weights.

    UserError: the checkpoint is torn, or belongs to another network.
    """
    import tensorflow as tf

    from models import serving_model
    from training.checkpoint import VARIABLES, CheckpointError, read_state

    options = source.options
    set_precision(precision)
    try:
        classes = read_state(source.path)["classes"]
    except (CheckpointError, KeyError) as error:
        raise UserError(f"{source.path} cannot be loaded: {error!r}") from error
    network = network_from_options(options, classes)
    try:
        status = tf.train.Checkpoint(model=network).read(str(source.path / VARIABLES))
        status.expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{source.path} cannot be loaded: {error!r}") from error
    serving = serving_model(options["model"], network)
    return lambda images: serving(images, training=False)
