"""TensorFlow's profiler over some steps of a run, for TensorBoard and XProf."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import tensorflow as tf


class Profiler:
    """Profiles the steps in `steps` (first, one after the last) into `folder`; None for no profile."""

    def __init__(self, folder: Path | None, steps: tuple[int, int] | None) -> None:
        self.folder = folder
        self.steps = steps
        self.running = False

    def before(self, step: int) -> bool:
        """Start or stop as `step`, which comes next, demands. Return whether a profile was just written."""
        if self.folder is None or self.steps is None:
            return False
        start, stop = self.steps
        if not self.running and start <= step < stop:
            tf.profiler.experimental.start(str(self.folder))
            self.running = True
        return step >= stop and self.stop()

    def around(self, batch: int) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the training step of a batch: the profiler's step times are of what is within."""
        if not self.running:
            return contextlib.nullcontext()
        return tf.profiler.experimental.Trace("train", step_num=batch, _r=1)

    def stop(self) -> bool:
        """Write the profile if one is being taken, and return whether it was."""
        if not self.running:
            return False
        tf.profiler.experimental.stop()
        self.running, self.steps = False, None
        return True
