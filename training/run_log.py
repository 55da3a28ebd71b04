"""Writes metrics.jsonl, TensorBoard's events and pictures of a run. On rank 0 only."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from training.dispensable import Dispensable
from training.resume import drop_later_metrics
from training.run_bar import RunBar, line_of
from training.tracking import Tracking
from utils.files import write_atomically
from utils.pictures import PARTS

_EVENTS = "TensorBoard's events"
SLIDE_PICTURES = "pictures/slides"

# TensorBoard sorts its sections by name: the curves, which are looked at first, come first.
_SECTIONS = {
    **dict.fromkeys(("loss", "miou", "auc", "calibration_error", "learning_rate"), "curves"),
    **dict.fromkeys(("iou", "dice", "precision", "recall"), "per_class"),
    **dict.fromkeys(
        ("froc_official", "froc_corrected", "slide_auc", "slide_miou", "slide_dice", "slide_iou"),
        "whole_slides",
    ),
    **dict.fromkeys(("sensitivity", "false_positives_per_normal_slide", "slides_asked"), "whole_slides"),
}
_METRICS = {"curves/miou": "mIoU", "per_class/dice/class_1": "Dice of tumour", "curves/auc": "AUC",
            "curves/calibration_error": "calibration error", "curves/loss": "loss"}  # fmt: skip


class RunLog:
    """Writes to `log_dir`; with None, as on all ranks but the first, it does nothing. A context manager.

    What is there of steps after `step`, where the run begins or goes on, is taken off: those steps come again, and
    so do the validations of `step` whose split is `due`.
    """

    def __init__(
        self, log_dir: Path | None, num_steps: int, step: int = 0, due: Collection[str] = ()
    ) -> None:
        self.log_dir = log_dir
        self.bar = RunBar(log_dir is not None, num_steps, step)
        self.dispensable = Dispensable(self.say)
        self.tracking: Tracking | None = None  # a copy of all numbers goes to it
        if log_dir is None:
            return
        drop_later_metrics(log_dir / "metrics.jsonl", step, due)
        self.jsonl = (log_dir / "metrics.jsonl").open("ab", buffering=0)
        self._unwritten = b""  # what did not fit on a full disk
        # TensorBoard itself leaves out the events of later steps when a step comes again.
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        self._failures = 0  # those of `dispensable` when the writers were made

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.log_dir is not None:
            self._append(b"")
            self.jsonl.close()
            for writer in self._writers.values():
                with self.dispensable(_EVENTS):
                    writer.close()

    @property
    def profile_dir(self) -> Path | None:
        """Return where TensorBoard's profiler looks for a profile: in the folder of one of its runs."""
        return None if self.log_dir is None else self.log_dir / "tensorboard" / "train"

    def say(self, line: str) -> None:
        """Print a line without breaking the progress bar."""
        self.bar.say(line)

    def histograms(self, step: int, variables: Sequence[tf.Variable]) -> None:
        if self.log_dir is None:
            return

        def summarise() -> None:
            for variable in variables:
                tf.summary.histogram(f"weights/{variable.name.partition(':')[0]}", variable)

        self._tensorboard("val", step, summarise)

    def hparams(self, options: dict[str, Any]) -> None:
        """Write the options, and which scores belong to them, for TensorBoard's table of runs."""
        if self.log_dir is None:
            return
        shown = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in options.items()}
        metrics = [hparams.Metric(tag, display_name=f"validation {name}") for tag, name in _METRICS.items()]
        run = self.log_dir.name

        def summarise() -> None:
            hparams.hparams_config([hparams.HParam(name) for name in shown], metrics)
            hparams.hparams(shown, trial_id=run)

        self._tensorboard("val", 0, summarise)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write one object of metrics.jsonl and its TensorBoard scalars, and print a line where there is no bar."""
        if self.log_dir is None:
            return
        self._append(f"{json.dumps({'step': step, 'split': split, **values})}\n".encode())

        numbers = {tag: number for name, value in values.items() for tag, number in _scalars(name, value)}

        def summarise() -> None:
            for tag, number in numbers.items():
                tf.summary.scalar(tag, number)

        if self.tracking is not None:
            self.tracking.metrics(step, {f"{split}/{tag}": number for tag, number in numbers.items()})
        self._tensorboard(split, step, summarise)
        if split != "train" or not self.bar.tty:
            self.say(line_of(step, split, values))

    def pictures(self, step: int, panels: list[np.ndarray]) -> None:
        """Write panels of utils.pictures to TensorBoard and to <log_dir>/pictures/validation_<step>.png."""
        if self.log_dir is None or not panels:
            return

        def summarise() -> None:
            tf.summary.image(", ".join(PARTS), np.stack(panels), max_outputs=len(panels), step=step)

        self._tensorboard("val", step, summarise)
        folder = self.log_dir / "pictures"
        with self.dispensable(f"{folder}"):
            folder.mkdir(exist_ok=True)
            sheet = cv2.cvtColor(np.concatenate(panels, axis=0), cv2.COLOR_RGB2BGR)
            # Not cv2.imwrite, which does not say why a file cannot be written.
            content = cv2.imencode(".png", sheet)[1].tobytes()
            write_atomically(folder / f"validation_{step:09d}.png", lambda path: path.write_bytes(content))

    def slide_pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Write JPEGs of whole slides to TensorBoard and to <log_dir>/pictures/slides/<slide>.jpg, the newest only."""
        if self.log_dir is None or not pictures:
            return

        def summarise() -> None:
            for name, content in pictures.items():
                tf.summary.image(f"whole slide {name}", tf.io.decode_jpeg(content)[None], step=step)

        self._tensorboard("slides", step, summarise)
        folder = self.log_dir / SLIDE_PICTURES
        with self.dispensable(f"{folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in pictures.items():
                write_atomically(folder / f"{name}.jpg", partial(_write_bytes, content))

    def _append(self, line: bytes) -> None:
        """Write a line to metrics.jsonl, after what did not fit on a full disk before."""
        self._unwritten += line
        with self.dispensable("metrics.jsonl"):
            while self._unwritten:
                self._unwritten = self._unwritten[self.jsonl.write(self._unwritten) :]

    def _tensorboard(self, split: str, step: int, summarise: Callable[[], None]) -> None:
        """Write the summaries that `summarise` makes.

        After anything that could not be written a new file begins. TensorFlow does not always say that it has torn an
        event, and behind a torn one nothing is read.
        """
        assert self.log_dir is not None
        if self.dispensable.failures > self._failures:
            self._failures = self.dispensable.failures
            self._writers.clear()
        with self.dispensable(_EVENTS):
            if split not in self._writers:
                folder = str(self.log_dir / "tensorboard" / split)
                self._writers[split] = tf.summary.create_file_writer(folder)
            with self._writers[split].as_default(step):
                summarise()
            self._writers[split].flush()


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _scalars(name: str, value: Any) -> list[tuple[str, float]]:
    """Return the scalars of a value: ("iou", [0.9, None]) → [("per_class/iou/class_0", 0.9)]; numbers as they are."""
    tag = f"{_SECTIONS.get(name, 'speed')}/{name}"
    if isinstance(value, list):
        return [(f"{tag}/class_{i}", v) for i, v in enumerate(value) if v is not None]
    return [] if value is None or isinstance(value, (str, dict)) else [(tag, float(value))]
