"""TensorFlow's profiler over some steps of a run, for TensorBoard and XProf."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from training.dispensable import Dispensable


class Profiler:
    """Profiles the steps in `steps` (first, one after the last) into `folder`; None for no profile.

    `say` prints a line that tells how to look at the profile.
    """

    def __init__(
        self, folder: Path | None, steps: tuple[int, int] | None, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.say = say
        self.dispensable = Dispensable(say)
        self.running = False

    def before(self, step: int, images: int) -> None:
        """Start or stop as the batch demands that comes next: `images` steps from `step` on."""
        if self.folder is None or self.steps is None:
            return
        start, stop = self.steps
        if not self.running and start < step + images and step < stop:
            with self.dispensable("the profile"):
                tf.profiler.experimental.start(str(self.folder))
                self.running = True
        elif step >= stop:
            self.stop()

    def around(self, batch: int) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the training step of a batch: the profiler's step times are of what is within."""
        if not self.running:
            return contextlib.nullcontext()
        return tf.profiler.experimental.Trace("train", step_num=batch, _r=1)

    def stop(self) -> None:
        """Write the profile if one is being taken: at its last step, or where the run ends before it."""
        if not self.running or self.folder is None:
            return
        self.running, self.steps = False, None
        with self.dispensable("the profile"):
            tf.profiler.experimental.stop()
            self.say(
                f"profile:     xprof --logdir '{self.folder.parent}' (docs/training.md says how to install xprof)"
            )
