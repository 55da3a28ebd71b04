"""Plans a run: learning rate, frozen batch norm and what is due are pure functions of the step.

A step is one image: a batch of B patches on each of N ranks is B·N steps. What is due every so many steps happens
after the update that crosses a multiple of them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import NamedTuple

from training.schedule import SCALINGS, learning_rate

# Batches per rank, forward only, from which precise batch norm statistics are computed; at most an eighth of the
# run's updates.
PRECISE_BN_BATCHES = 50
SLIDE_VALIDATIONS = 10  # validations on whole slides per run, unless --validate_slides_every says otherwise


def slides_every(options: argparse.Namespace, num_steps: int) -> int:
    """Return the steps between two validations on whole slides, 0: none. Unless asked otherwise, a tenth of the run."""
    if options.validate_slides is None:
        return 0
    return options.validate_slides_every or max(1, num_steps // SLIDE_VALIDATIONS)


class Due(NamedTuple):
    """The actions that are due after an update."""

    log: bool
    validate: bool
    validate_slides: bool
    save: bool
    done: bool  # the last step has been taken


@dataclass(frozen=True)
class Plan:
    """The schedule of a run. Steps are counted over all ranks."""

    num_steps: int
    batch_images: int  # images per batch, over all ranks
    accumulate_steps: int  # batches per update
    peak_rate: float
    warmup_steps: int
    schedule: str  # a key of SCHEDULES
    freeze_step: float  # first step with frozen batch norm; infinity for none
    log_every: int
    validate_every: int
    checkpoint_every: int
    slides_every: int  # steps between two validations on whole slides, 0 for none

    @classmethod
    def of(cls, options: argparse.Namespace, ranks: int) -> Plan:
        """Build the plan of a run on this number of ranks, or groups of ranks that share their patches."""
        # Where the ranks' gradients agree, Adasum's result is as long as one rank's gradient: so is its rate.
        scale = SCALINGS["none" if options.adasum else options.lr_scaling](ranks)
        return cls(
            num_steps=options.num_steps,
            batch_images=options.batch_size * ranks,
            accumulate_steps=options.accumulate_steps,
            peak_rate=options.learning_rate * scale,
            warmup_steps=options.warmup_steps,
            schedule=options.lr_schedule,
            freeze_step=(1 - options.freeze_bn) * options.num_steps if options.freeze_bn else math.inf,
            log_every=options.log_every,
            validate_every=options.validate_every,
            checkpoint_every=options.checkpoint_every or options.num_steps,
            slides_every=slides_every(options, options.num_steps),
        )

    @property
    def precise_bn_batches(self) -> int:
        """Return how many batches per rank the precise batch norm statistics are computed from."""
        return max(1, min(PRECISE_BN_BATCHES, self.num_steps // self.batch_images // 8))

    def rate(self, step: int) -> float:
        """Return the learning rate of the batch that starts at `step`."""
        return learning_rate(
            step, self.num_steps, self.warmup_steps, self.peak_rate, self.schedule, self.freeze_step
        )

    def frozen(self, step: int) -> bool:
        """Return whether batch norm is frozen for the batch that starts at `step`."""
        return step >= self.freeze_step

    def due(self, step: int) -> Due:
        """Return what is due after the update that ends at `step`."""
        done = step >= self.num_steps
        validate = done or self._crossed(step, self.validate_every)
        slides = self.slides_every > 0 and (done or self._crossed(step, self.slides_every))
        save = validate or slides or self._crossed(step, self.checkpoint_every)
        return Due(done or self._crossed(step, self.log_every), validate, slides, save, done)

    def _crossed(self, step: int, every: int) -> bool:
        return step // every > (step - self.batch_images * self.accumulate_steps) // every
