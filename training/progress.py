"""Where a run is, as its checkpoints have it, what it sums up between two logs, how long a batch takes."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.metrics import Counts
from utils.ranks.single import Ranks


@dataclass(frozen=True)
class Position:
    """Where a run is: at its begin, or as a checkpoint has it."""

    step: int = 0  # images seen, over all ranks
    batch: int = 0  # the rank's next one
    best: tuple[float, int] = (-1.0, -1)  # validation mIoU, step
    validations: int = 0  # since the best one
    miou: float = math.nan  # of the last validation
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict)  # bad slides, see Loader
    interval: dict[str, Any] = field(default_factory=dict)  # of rank 0: what was not logged yet
    mined: tuple[int, int] = (0, 0)  # of rank 0: candidates and rejected patches in it
    validation_due: bool = False  # at this step, and not done
    longest_pause: float = 0.0  # seconds of a validation and its checkpoint
    remark: str = ""

    @classmethod
    def of(cls, state: dict[str, Any], options: argparse.Namespace, world: Ranks) -> Position:
        """As the checkpoint's state has it; the begin if there is none."""
        if not state:
            return cls()
        step, ranks = state["step"], state["ranks"]
        batch_size, accumulate_steps = options.batch_size, options.accumulate_steps
        if (len(ranks), state["batch_size"]) == (world.size, batch_size):
            batch = ranks[world.rank]["next_batch"]
            dropped = {slide: tuple(value) for slide, value in ranks[world.rank]["dropped"].items()}
            remark = ""
        else:  # other patches for each rank: bad slides are found again
            update = world.size * batch_size * accumulate_steps
            batch, dropped = -(-step // update) * accumulate_steps, {}
            remark = f"; it had {len(ranks)} ranks with batch {state['batch_size']}: the order of the patches differs"
        interval = state["interval"] if world.is_first else {}
        mined = tuple(state["mined"]) if world.is_first else (0, 0)
        best, miou = tuple(state["best"]), state["miou"]
        due, pause = state["validation_due"], state["longest_pause"]
        return cls(
            step, batch, best, state["validations"], miou, dropped, interval, mined, due, pause, remark
        )


class Laps:
    """How long the last batches took, each alone."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=500)

    def start(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> None:
        """A batch is done, and the next one begins."""
        self.seconds.append(time.perf_counter() - self.started)
        self.start()

    @property
    def usual(self) -> float:
        """The mean without what is slow but once: a first batch waits for its graph."""
        seconds = np.array(self.seconds)
        return float(seconds[seconds <= 3 * np.median(seconds)].mean())


@dataclass
class Interval:
    """What is summed up between two logs."""

    counts: Counts
    start_step: int
    start_wait: float  # of the loader's clock
    start_time: float
    pause_time: float | None = None  # when the present pause began

    @property
    def seconds(self) -> float:
        """Since its begin, without pauses."""
        return (self.pause_time or time.perf_counter()) - self.start_time

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within takes no time."""
        self.pause_time = time.perf_counter()
        yield
        self.start_time += time.perf_counter() - self.pause_time
        self.pause_time = None

    @classmethod
    def begin(cls, num_classes: int, step: int, wait: float, state: dict[str, Any] | None = None) -> Interval:
        """From now on, or as a checkpoint's `state` has it."""
        now = time.perf_counter()
        if not state:
            return cls(Counts(num_classes), step, wait, now)
        counts = Counts.unpacked(np.array(state["counts"]), num_classes)
        return cls(counts, state["start_step"], wait, now - state["seconds"])

    def state(self, total: Counts) -> dict[str, Any]:
        """For a checkpoint, with the counts of all ranks."""
        return {
            "counts": total.packed().tolist(),
            "start_step": self.start_step,
            "seconds": self.seconds,
        }
