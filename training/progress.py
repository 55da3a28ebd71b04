"""The progress of a run: the state that a checkpoint holds besides the variables, which writes and reads itself.

A new field of `Progress` is written and read by itself, once for all ranks. A field that each rank has for itself is
named in PER_RANK as well, and `from_state` decides what becomes of it when the number of ranks is another one. Ranks
that share their patches (`--ranks_per_patch`) have the same values: the state has them once for each group.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from training.clocks import Stopwatch
from training.metrics import Counts
from utils.ranks.single import Ranks

PER_RANK = ("next_batch", "dropped")
SCORE = ("best", "validations", "miou", "validation_due", "slides_due")


@dataclass
class Interval:
    """The sums between two logs."""

    counts: Counts
    start_step: int
    clock: Stopwatch = field(default_factory=Stopwatch)
    candidates: int = 0  # patches that hard mining looked at, and those that it rejected
    rejected: int = 0
    start_wait: float = 0.0  # the loader's `wait_seconds` when the interval began

    def start(self, wait: float) -> None:
        """Start the clock; `wait` is the loader's `wait_seconds` now."""
        self.start_wait = wait
        self.clock.start()

    def count_mined(self, candidates: int, rejected: int) -> None:
        self.candidates += candidates
        self.rejected += rejected

    def values(self, world: Ranks, step: int, wait: float) -> dict[str, Any]:
        """Collective: return what metrics.jsonl says of the interval, which ends at `step`.

        `wait` is the loader's `wait_seconds` now. The wait that is returned is that of the rank that waited longest.
        """
        seconds = self.clock.seconds
        values = self.counts.summed(world).summary()
        mine = wait - self.start_wait, self.candidates, self.rejected
        waits, candidates, rejected = zip(*world.gather(mine))
        values["seconds"] = seconds
        values["images_per_second"] = (step - self.start_step) / seconds
        values["sampler_wait"] = max(waits) / seconds
        if any(candidates):
            values["rejected"] = sum(rejected) / sum(candidates)
        return values

    def to_state(self, world: Ranks) -> dict[str, Any]:
        """Collective: return the interval as JSON values, summed over ranks."""
        candidates, rejected = zip(*world.gather((self.candidates, self.rejected)))
        return {
            "counts": self.counts.summed(world).packed().tolist(),
            "start_step": self.start_step,
            "seconds": self.clock.seconds,
            "candidates": sum(candidates),
            "rejected": sum(rejected),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], num_classes: int) -> Interval:
        counts = Counts.unpacked(np.array(state["counts"]), num_classes)
        mined = state.get("candidates", 0), state.get("rejected", 0)
        return cls(counts, state["start_step"], Stopwatch(state["seconds"]), *mined)


@dataclass
class Progress:
    """The progress of a run on one rank."""

    interval: Interval
    step: int = 0  # images seen, over all ranks
    best: tuple[float, int] = (-1.0, -1)  # highest score of --best_by so far, and its step
    validations: int = 0  # number of validations since the best one
    miou: float = math.nan  # of the last validation on patches
    validation_due: bool = False  # the validation that is due at this step has not been done yet
    longest_pause: float = 0.0  # longest time in seconds that a validation with its checkpoint took
    next_batch: int = 0  # index of this rank's next batch
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict)  # bad slides, see Loader
    slides_due: bool = False  # the same for the validation on whole slides
    precise_bn: bool = False  # batch norm's statistics were estimated anew, before they were frozen

    @property
    def due(self) -> list[str]:
        """Return the splits of metrics.jsonl whose validation of this step has not been done yet."""
        return [split for split, due in (("val", self.validation_due), ("slides", self.slides_due)) if due]

    @classmethod
    def begin(cls, num_classes: int) -> Progress:
        return cls(Interval(Counts(num_classes), 0))

    def add_score(self, score: float | None) -> None:
        """Take the score of --best_by of a validation at the present step; None, if it has none, decides nothing."""
        if score is None:
            return
        if score > self.best[0]:
            self.best, self.validations = (score, self.step), 0
        else:
            self.validations += 1

    def score_to_state(self) -> dict[str, Any]:
        """Return the part of the state that validations change, as JSON values."""
        return {name: getattr(self, name) for name in SCORE}

    def to_state(self, world: Ranks) -> dict[str, Any]:
        """Collective: return the state of all ranks as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "interval"}
        mine = {name: values.pop(name) for name in PER_RANK}
        of_groups = world.gather(mine)[:: world.group.size]
        return {**values, "ranks": of_groups, "interval": self.interval.to_state(world)}

    @classmethod
    def from_state(
        cls, state: dict[str, Any], options: argparse.Namespace, world: Ranks, num_classes: int
    ) -> tuple[Progress, str]:
        """Return this rank's progress, and a remark if the patches will come in another order.

        `state` is `to_state`'s with the `batch_size` of the run. With another number of ranks or another batch size
        each rank goes on behind the batches that were seen, and finds bad slides again. Ranks that share patches count
        as one.
        """
        names = {f.name for f in fields(cls)} - {"interval", *PER_RANK}
        values = {name: state[name] for name in names if name in state}
        values["best"] = tuple(values["best"])
        ranks, step, group = state["ranks"], state["step"], world.group
        remark = ""
        if (len(ranks), state["batch_size"]) == (group.count, options.batch_size):
            mine = ranks[group.index]
            dropped = {slide: tuple(value) for slide, value in mine["dropped"].items()}
            values.update(next_batch=mine["next_batch"], dropped=dropped)
        else:
            update = group.count * options.batch_size * options.accumulate_steps
            values["next_batch"] = -(-step // update) * options.accumulate_steps
            kind = "ranks" if group.size == 1 else "groups of ranks"
            remark = f"; it had {len(ranks)} {kind} with batch {state['batch_size']}: the order of the patches differs"
        # The sums of all ranks go on in rank 0: they are summed over ranks again.
        if world.is_first:
            interval = Interval.from_state(state["interval"], num_classes)
        else:
            interval = Interval(Counts(num_classes), step)
        return cls(interval, **values), remark
