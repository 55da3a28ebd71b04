"""A trained model, of a run's folder, a checkpoint or an export: what it takes and what it gives."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from samplers.label_map import LabelMap
from utils.cli import UserError

# What the options of a run are if it left none: those of an exported model alone.
_UNKNOWN: dict[str, Any] = {"img_size": 1024, "resolution": None, "bb_downsample": 7, "label_map": None}


@dataclass(frozen=True)
class Source:
    """Where a model is. `export` is a SavedModel, `checkpoint` a folder with variables; one of them is None."""

    export: Path | None
    checkpoint: Path | None
    options: dict[str, Any]  # of the run; see _UNKNOWN

    @property
    def img_size(self) -> int:
        return int(self.options["img_size"])

    @property
    def label_map(self) -> LabelMap:
        return LabelMap.parse(self.options["label_map"])

    @property
    def spacing(self) -> float | None:
        """µm/px of the patches that it was trained on; None: level 0, or not known."""
        value = self.options["resolution"]
        return None if value is None else float(value)

    def identity(self) -> str:
        """The file and a checksum that changes with the weights' values."""
        path = self.export / "variables" if self.export is not None else self.checkpoint
        assert path is not None
        crc = 0
        for file in sorted(path.glob("variables*")):
            crc = zlib.crc32(file.read_bytes(), crc)
        return f"{path} {crc:08x}"


def find_model(path: Path, mixed_precision: str | None) -> Source:
    """The model at `path`: a log_dir (its export, else its newest checkpoint), a checkpoint, or an export.

    With `mixed_precision` a log_dir's checkpoint, since an export has the precision that it was written with.
    UserError: there is none, or it cannot be had in that precision.
    """
    if (path / "saved_model.pb").exists():
        if mixed_precision is not None:
            raise UserError(
                f"--mixed_precision: {path} is an exported model and has the precision it was exported with; "
                "name the log_dir of its run"
            )
        return Source(path, None, _options(path.parent))
    if (path / "state.json").exists():
        return Source(None, path, _options(path.parent.parent, needed=True))
    if not (path / "options.json").exists():
        raise UserError(f"--model_path: {path} is no log_dir, no checkpoint and no exported model")
    if (path / "model" / "saved_model.pb").exists() and mixed_precision is None:
        return Source(path / "model", None, _options(path))
    from utils.checkpoint import latest_checkpoint

    checkpoint, bad = latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise UserError("\n".join([*bad, f"--model_path: {path} has no whole checkpoint"]))
    return Source(None, checkpoint, _options(path, needed=True))


def _options(log_dir: Path, needed: bool = False) -> dict[str, Any]:
    path = log_dir / "options.json"
    if not path.exists() and not needed:
        return _UNKNOWN
    try:
        options: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return {**_UNKNOWN, **options}


Predictor = Callable[[np.ndarray], np.ndarray]


def load_model(source: Source, mixed_precision: str | None, tta: bool) -> tuple[Predictor, int]:
    """uint8 RGB (B, H, W, 3) → float32 class probabilities (B, H, W, C); and C.

    `tta`: mean over the eight flips and quarter turns of the patch.
    """
    import tensorflow as tf
    import tf_keras as keras

    try:
        model = _exported(source.export) if source.export is not None else _restored(source, mixed_precision)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise UserError(f"{source.export or source.checkpoint} cannot be loaded: {error}") from error
    graph = tf.function(lambda images: model(images, training=False), autograph=False, reduce_retracing=True)

    def predict(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = graph(tf.constant(images)).numpy()
        return found

    assert isinstance(model, keras.Model)
    return (_averaged(predict) if tta else predict), int(model.output_shape[-1])


def _averaged(predict: Predictor) -> Predictor:
    def mean(images: np.ndarray) -> np.ndarray:
        total: Any = 0.0
        for turns in range(4):
            for axes in ((), (2,)):
                turned = np.rot90(np.flip(images, axes), turns, (1, 2))
                found = predict(np.ascontiguousarray(turned))
                total = total + np.flip(np.rot90(found, -turns, (1, 2)), axes)
        return np.asarray(total / 8, np.float32)

    return mean


def _exported(path: Path) -> Any:
    import tf_keras as keras

    return keras.models.load_model(path, compile=False)


def _restored(source: Source, mixed_precision: str | None) -> Any:
    """The network of a checkpoint, with its averaged weights if there are any, as train.py exports it."""
    import tensorflow as tf
    import tf_keras as keras

    from models import build_model, serving_model
    from utils.checkpoint import read_state

    assert source.checkpoint is not None
    options, state = source.options, read_state(source.checkpoint)
    policy = mixed_precision or "float32"
    keras.mixed_precision.set_global_policy(policy if policy == "float32" else f"mixed_{policy}")
    model = build_model(
        options["model"],
        None,
        state["classes"],
        fpn_min_level=options["fpn_min_level"],
        fpn_cells=options["fpn_cells"],
        output_stride=options["output_stride"],
    )
    averages = [tf.Variable(v, trainable=False) for v in model.trainable_variables if options["ema"]]
    checkpoint = tf.train.Checkpoint(model=model, **({"averages": averages} if averages else {}))
    status = checkpoint.read(str(source.checkpoint / "variables"))
    status.expect_partial().assert_existing_objects_matched()  # the optimizer stays out
    for average, variable in zip(averages, model.trainable_variables):
        variable.assign(average)
    return serving_model(options["model"], model)
