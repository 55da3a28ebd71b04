"""What a run leaves behind and shows: metrics.jsonl, TensorBoard, pictures, the progress bar. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

from training.metrics import mean_iou
from training.progress import Interval
from training.resume import drop_later_metrics
from utils.pictures import PARTS
from utils.ranks.launcher import terminal_columns

_PIPE_SECONDS = 0.05
# No elapsed time where it would push the scores off a narrow terminal.
_WIDE = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
_NARROW = "{n_fmt}/{total_fmt}|{bar}| {remaining} left{postfix}"
_WIDE_COLUMNS = 110
# TensorBoard's sections, which it sorts by name: what one looks at first stands first.
_SECTIONS = {
    **dict.fromkeys(("loss", "miou", "auc", "calibration_error", "learning_rate"), "curves"),
    **dict.fromkeys(("iou", "dice", "precision", "recall"), "per_class"),
}
_METRICS = {"curves/miou": "mIoU", "per_class/dice/class_1": "Dice of tumour", "curves/auc": "AUC",
            "curves/calibration_error": "calibration error", "curves/loss": "loss"}  # fmt: skip


def _short(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class RunLog:
    """Writes to `log_dir`; with `None` (all ranks but the first) it does nothing. A context manager."""

    def __init__(
        self, log_dir: Path | None, num_steps: int, step: int = 0, profiled: tuple[int, int] | None = None
    ) -> None:
        self.log_dir = log_dir
        columns = terminal_columns() if log_dir is not None else 0
        self.tty = columns > 0
        self.bar: tqdm | None = None
        self.profiled = profiled  # first step and the one after the last
        self.profiling = False
        self.scores = ""  # of the last batch, as the bar has them
        if log_dir is None:
            return
        drop_later_metrics(log_dir / "metrics.jsonl", step)
        self.jsonl = (log_dir / "metrics.jsonl").open("a")
        # TensorBoard leaves out what it has of later steps when a step comes again.
        self.writers = {
            split: tf.summary.create_file_writer(str(log_dir / "tensorboard" / split))
            for split in ("train", "val")
        }
        self.bar = tqdm(
            total=num_steps,
            initial=step,
            smoothing=0,  # the time left with the validations that are to come
            disable=not self.tty,
            ncols=columns,
            bar_format=_WIDE if columns >= _WIDE_COLUMNS else _NARROW,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_profile()
        self.close_bar()
        if self.log_dir is not None:
            self.jsonl.close()
            for writer in self.writers.values():
                writer.close()

    def progress(self, step: int, loss: float, interval: Interval, wait: float) -> None:
        """Moves the bar to `step`, with the loss of this batch, and since the last log the mIoU, the images of
        all ranks a second, and the part of the time that was waited for data.
        """
        if self.bar is not None and self.tty:
            seconds = interval.seconds
            rate, miou = (step - interval.start_step) / seconds, mean_iou(interval.counts.confusion)
            wide = self.bar.ncols >= _WIDE_COLUMNS
            self.scores = (
                f"{rate:.1f} {'images' if wide else 'img'}/s, loss {loss:.3f}, mIoU {_short(miou, 3)}, "
                f"{'data wait' if wide else 'wait'} {wait / seconds:.0%}"
            )
            self.bar.set_postfix_str(self.scores, refresh=False)
            self.bar.update(min(step, self.bar.total) - self.bar.n)

    def now(self, what: str) -> None:
        """What the bar says while it stands still."""
        if self.bar is not None and self.tty:
            self.bar.set_postfix_str(what)

    def close_bar(self) -> None:
        """After the last step: what is said then has no bar to go round."""
        if self.bar is not None:
            self.now(self.scores)
            self.bar.close()
            self.bar = None

    def profile(self, step: int) -> None:
        """Before each step: starts and stops TensorFlow's profiler."""
        if self.log_dir is None or self.profiled is None:
            return
        start, stop = self.profiled
        if not self.profiling and start <= step < stop:
            # Where a run of TensorBoard's is: elsewhere its profiler does not find it.
            tf.profiler.experimental.start(str(self.log_dir / "tensorboard" / "train"))
            self.profiling = True
        elif self.profiling and step >= stop:
            self.stop_profile()

    def traced(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Around a step: the profiler's times of a step are of what is within."""
        return (
            tf.profiler.experimental.Trace("train", step_num=step, _r=1)
            if self.profiling
            else contextlib.nullcontext()
        )

    def stop_profile(self) -> None:
        if self.profiling:
            tf.profiler.experimental.stop()
            self.profiling, self.profiled = False, None
            self.say(
                f"profile:     xprof --logdir '{self.log_dir}/tensorboard' (README: how to install xprof)"
            )

    def histograms(self, step: int, variables: Sequence[tf.Variable]) -> None:
        if self.log_dir is None:
            return
        with self.writers["val"].as_default(step):
            for variable in variables:
                tf.summary.histogram(f"weights/{variable.name.partition(':')[0]}", variable)

    def hparams(self, options: dict[str, Any]) -> None:
        """The options and the validation's scores, for TensorBoard's table of runs."""
        if self.log_dir is None:
            return
        shown = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in options.items()}
        metrics = [hparams.Metric(tag, display_name=f"validation {name}") for tag, name in _METRICS.items()]
        with self.writers["val"].as_default(0):
            hparams.hparams_config([hparams.HParam(name) for name in shown], metrics)
            hparams.hparams(shown, trial_id=self.log_dir.name)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One object of metrics.jsonl and its TensorBoard scalars; a plain line where there is no bar."""
        if self.log_dir is None:
            return
        self.jsonl.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.jsonl.flush()
        with self.writers[split].as_default(step):
            for name, value in values.items():
                for label, number in _scalars(name, value):
                    tf.summary.scalar(label, number)
        self.writers[split].flush()
        if split == "val" or not self.tty:
            self.say(
                f"step {step:>7} {split:<5} loss {_short(values.get('loss'))}  mIoU {_short(values.get('miou'))}  "
                f"{values.get('images_per_second', 0):.1f} images/s"
            )

    def pictures(self, step: int, panels: list[np.ndarray]) -> None:
        """Panels of utils.pictures to TensorBoard and to <log_dir>/pictures/validation_<step>.png."""
        if self.log_dir is None or not panels:
            return
        with self.writers["val"].as_default(step):
            tf.summary.image(", ".join(PARTS), np.stack(panels), max_outputs=len(panels), step=step)
        folder = self.log_dir / "pictures"
        folder.mkdir(exist_ok=True)
        sheet = cv2.cvtColor(np.concatenate(panels, axis=0), cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / f"validation_{step:09d}.png"), sheet):
            raise OSError(f"{folder}/validation_{step:09d}.png cannot be written")

    def say(self, line: str) -> None:
        """A line that does not break the progress bar."""
        if self.log_dir is None:
            return
        with tqdm.external_write_mode():
            # The bar and the line go through two pipes of the launcher, which keep no order between them.
            time.sleep(_PIPE_SECONDS if self.tty else 0)
            print(line, flush=True)
            time.sleep(_PIPE_SECONDS if self.tty else 0)


def _scalars(name: str, value: Any) -> list[tuple[str, float]]:
    """("iou", [0.9, None]) → [("per_class/iou/class_0", 0.9)]; numbers as they are."""
    tag = f"{_SECTIONS.get(name, 'speed')}/{name}"
    if isinstance(value, list):
        return [(f"{tag}/class_{i}", v) for i, v in enumerate(value) if v is not None]
    return [] if value is None or isinstance(value, (str, dict)) else [(tag, float(value))]
