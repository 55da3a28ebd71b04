"""The model to predict with: of a run's folder, a checkpoint or an exported model. TensorFlow is imported late."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samplers.labels.label_map import LabelMap
from utils.cli import UserError

EXPORTED, STATE = "saved_model.pb", "state.json"


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and how it was trained."""

    path: Path  # of the SavedModel or of the checkpoint
    options: dict[str, Any]  # of the training run; empty if they are not beside it

    @property
    def is_exported(self) -> bool:
        return (self.path / EXPORTED).exists()

    def identity(self) -> str:
        """Of the content of its files, wherever they are."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            digest.update(str(path.relative_to(self.path)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()[:16]


def find_model(path: Path, precision: str | None) -> ModelSource:
    """The model at `path`: a log_dir, a checkpoint (its folder, or that of all) or an exported model.

    Of a log_dir the exported model, or the newest whole checkpoint where there is none or where another
    `precision` than that of the training is asked for. UserError: there is no model, or it cannot have this
    precision.
    """
    if not path.is_dir():
        raise UserError(f"--model_path {path}: there is no such folder")
    path = path.resolve()
    if (path / EXPORTED).exists():
        options = _options_of(path.parent)
        exported = options.get("mixed_precision")
        if precision is not None and precision != exported:
            raise UserError(
                f"{path} is exported and computes as it was exported ({exported or 'not known'}): for "
                f"--mixed_precision {precision} give the log_dir or a checkpoint of its training run"
            )
        return ModelSource(path, options)
    if (path / STATE).exists():
        return ModelSource(path, _need_options(path.parent.parent))
    log_dir = path.parent if path.name == "checkpoints" else path
    options = _options_of(log_dir)
    other = precision is not None and precision != options.get("mixed_precision")
    if path == log_dir and (path / "model" / EXPORTED).exists() and not other:
        return ModelSource(path / "model", options)
    checkpoints = sorted((log_dir / "checkpoints").glob("step_*"))
    if checkpoints:
        return ModelSource(_newest_whole(log_dir / "checkpoints"), _need_options(log_dir))
    if other and (path / "model" / EXPORTED).exists():
        raise UserError(f"{path} has no checkpoint to compute in {precision} with, only an exported model")
    raise UserError(
        f"--model_path {path} holds no model: neither a log_dir, a checkpoint nor an exported model"
    )


def _options_of(folder: Path) -> dict[str, Any]:
    """Of a run, {} if the folder is none. UserError: they cannot be read."""
    path = folder / "options.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _need_options(folder: Path) -> dict[str, Any]:
    options = _options_of(folder)
    if "model" not in options:
        raise UserError(f"{folder}/options.json is missing: without it no model is built for its checkpoints")
    return options


def _newest_whole(folder: Path) -> Path:
    from training.checkpoint import latest_checkpoint

    path, bad = latest_checkpoint(folder)
    if path is None:
        raise UserError(f"no whole checkpoint in {folder}: {'; '.join(bad)}")
    return path


def class_names(options: dict[str, Any], classes: int) -> list[str]:
    """What outlines of the classes 1, 2, … are called: as the groups of the training's label map, else Tumor."""
    given = options.get("label_map")
    groups = LabelMap.parse(given).groups if given else (("Tumor", 1),)
    return [
        next(
            (group for group, number in groups if number == value and not group.isdecimal()), f"class_{value}"
        )
        for value in range(1, classes)
    ]


class Predictor:
    """Class probabilities of patches: of two classes that of the second, of more those of all.

    uint8 RGB (B, H, W, 3) → float32 (B, planes, H, W). `classes`: their number. UserError: the model cannot be
    loaded or takes no patches of `size` pixels.
    """

    def __init__(self, source: ModelSource, precision: str | None, size: int, tta: bool) -> None:
        import tensorflow as tf

        if source.is_exported:
            try:
                model: Callable[[Any], Any] = tf.saved_model.load(str(source.path))
            except (OSError, ValueError, tf.errors.OpError) as error:
                raise UserError(f"{source.path} cannot be loaded: {error}") from error
        else:
            model = _of_checkpoint(source, precision or source.options["mixed_precision"])

        def planes(images: tf.Tensor) -> tf.Tensor:
            probabilities = _averaged(model, images) if tta else model(images)
            if probabilities.shape[-1] == 2:
                probabilities = probabilities[..., 1:]
            return tf.transpose(tf.cast(probabilities, tf.float32), (0, 3, 1, 2))

        spec = tf.TensorSpec((None, size, size, 3), tf.uint8)
        self._forward = tf.function(planes, input_signature=[spec], autograph=False)
        try:  # now, not at the first slide; a batch of another size is traced no more
            found = self(np.zeros((1, size, size, 3), np.uint8))
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise UserError(f"{source.path} takes no patches of {size} × {size} pixels: {error}") from error
        self.planes = found.shape[1]
        self.classes = max(2, self.planes)
        if found.shape[2:] != (size, size):
            raise UserError(f"{source.path} gives {found.shape[2:]} pixels for patches of {size} × {size}")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._forward(images))


def _averaged(model: Callable[[Any], Any], images: Any) -> Any:
    """Mean over the eight flips and quarter turns."""
    import tensorflow as tf

    total = 0.0
    for flipped in (False, True):
        for turns in range(4):
            turned = tf.image.rot90(tf.image.flip_left_right(images) if flipped else images, turns)
            back = tf.image.rot90(model(turned), -turns)
            total += tf.image.flip_left_right(back) if flipped else back
    return total / 8


def _of_checkpoint(source: ModelSource, precision: str) -> Callable[[Any], Any]:
    """Return the network of the run's options with the checkpoint's weights, computing in `precision`."""
    import tensorflow as tf

    from models import serving_model
    from models.from_options import network_from_options
    from training.checkpoint import VARIABLES, CheckpointError, read_state

    options = {"bn_momentum": None, **source.options, "mixed_precision": precision}
    try:
        network = network_from_options(options, read_state(source.path)["classes"])
        status = tf.train.Checkpoint(model=network).read(str(source.path / VARIABLES))
        status.expect_partial().assert_existing_objects_matched()
    except (AssertionError, KeyError, ValueError, CheckpointError, tf.errors.OpError) as error:
        raise UserError(f"{source.path} cannot be loaded: {error!r}") from error
    serving = serving_model(options["model"], network)
    return lambda images: serving(images, training=False)
