"""The training loop. All ranks run it in step: whatever is collective happens at the same step on each of them."""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samplers import Loader, too_many_bad_slides
from training.checkpoint import Checkpointer
from training.clocks import Laps
from training.feed import Fed, Feed
from training.metrics import Counts
from training.mining import mined
from training.plan import Due, Plan
from training.profiler import Profiler
from training.progress import Interval, Progress
from training.rescue import Rescue
from training.run_log import RunLog
from training.samples import Samples
from training.slide_validation import SlideValidator
from training.stopping import Stopping
from training.trainer import StepResult, Trainer, compute_precise_bn, fail_on_loss
from training.validator import Validator
from utils.ranks.world import World

MARGIN = 1.5  # an update may take so many times as long as those before


@dataclass
class Loop:
    """Trains from where `progress` is to the last step."""

    options: argparse.Namespace
    world: World
    trainer: Trainer
    loader: Loader
    validator: Validator
    samples: Samples
    checkpointer: Checkpointer
    profiler: Profiler
    log: RunLog
    log_dir: Path
    progress: Progress
    slides: SlideValidator | None = None
    bad_slides_allowed: int | None = None  # of all ranks together
    laps: Laps = field(default_factory=Laps)

    def __post_init__(self) -> None:
        self.plan = Plan.of(self.options, self.world.group.count)
        self.stopping = Stopping(self.options.time_limit)
        self.rescue = Rescue(
            self.world, self.checkpointer, self.loader, self.description, lambda: self.stopping.signalled
        )

    def train(self) -> bool:
        """Train to the last step, or as --early_stopping says. Return whether the run was asked to stop before."""
        progress = self.progress
        self.stopping.listen(self.log.say)
        if progress.validation_due:  # the run ended between the checkpoint and its validation
            self.validate()
        if progress.slides_due:  # or it was cut short
            self.validate_slides()
        if progress.step >= self.plan.num_steps or self.stops_early():
            return False
        if self.world.is_first:  # the export of an earlier, shorter run would be mistaken for this one's
            shutil.rmtree(self.log_dir / "model", ignore_errors=True)
        batches = iter(self.loader)
        if self.options.hard_mining:
            batches = mined(batches, self.trainer, self.options, self.world, self.count_mined)
        feed = Feed(batches, self.trainer.gpu, self.world.activity)
        self.log.bar.now("the first step takes longest")
        progress.interval.start(self.loader.wait_seconds)
        self.laps.start()
        for number, fed in enumerate(feed, 1):
            if self.plan.frozen(progress.step) and not progress.precise_bn:
                fed = compute_precise_bn(self.trainer, fed, feed, self.plan.precise_bn_batches)
                progress.precise_bn = True
            rate, result = self.train_on(number, fed, feed)
            if number % self.options.accumulate_steps:
                continue  # a checkpoint holds the weights of the last update, but no gradients
            due = self.plan.due(progress.step)
            progress.validation_due = due.validate
            progress.slides_due |= due.validate_slides
            self.rescue.keep(progress)
            if due.log:
                self.log_interval(rate)
                self.rescue.keep(progress)  # or what was logged would be so again
            with progress.interval.clock.paused():
                done = self.validate_and_save(due, result.stop)
            self.laps.start()
            if done or result.stop:
                return not done
        raise AssertionError("the training loader is endless")

    def count_mined(self, candidates: int, rejected: int) -> None:
        """Count patches that hard mining looked at and rejected; those that ranks share are counted once."""
        if self.world.group.is_first:
            self.progress.interval.count_mined(candidates, rejected)

    def train_on(self, number: int, fed: Fed, feed: Feed) -> tuple[float, StepResult]:
        """Collective: take one training step, the run's `number`-th. Return its learning rate and its result."""
        progress, interval, batch = self.progress, self.progress.interval, fed.batch
        self.profiler.before(progress.step, self.plan.batch_images)
        self.validator.restart_dead_workers()
        rate, frozen = self.plan.rate(progress.step), self.plan.frozen(progress.step)
        stop = self.stopping.requested(progress.longest_pause, self.update_seconds())
        self.world.activity.begin(f"step {progress.step}" if number > 1 else "the first step")
        with self.profiler.around(number):
            result = self.trainer.train_step(
                fed.images, fed.labels, rate, batch.index, frozen, stop, feed.prepare
            )
        progress.step += self.plan.batch_images
        progress.next_batch = batch.index + 1
        if not math.isfinite(result.loss):
            fail_on_loss(batch, result, progress.step, self.world, self.log_dir)
        interval.counts.add(*result.counts)
        self.samples.add(batch.patches)
        wait = self.loader.wait_seconds - interval.start_wait
        self.log.bar.progress(progress.step, result.loss, interval, wait)
        self.laps.lap()
        return rate, result

    def update_seconds(self) -> float:
        """Return how long the next update takes, with a margin, 0 before the first one: a stop waits for its end."""
        if not self.laps.seconds:
            return 0.0
        batch, images = MARGIN * self.laps.usual, self.plan.batch_images
        freezes = self.plan.frozen(self.progress.step + (2 * self.plan.accumulate_steps - 1) * images)
        precise = self.plan.precise_bn_batches if freezes and not self.progress.precise_bn else 0
        return batch * (self.plan.accumulate_steps + precise / 2)  # forward only

    def validate_and_save(self, due: Due, stop: bool) -> bool:
        """Collective: write a checkpoint and validate where they are due. Return whether the run is done.

        The checkpoint comes first, so that nothing that goes wrong in the validation costs a step.
        """
        progress, done = self.progress, due.done
        start = time.perf_counter()
        if due.save or stop:
            self.save(must=done or stop)
        goes_on = done or not stop
        if due.validate and goes_on:
            self.validate()
        progress.longest_pause = max(progress.longest_pause, time.perf_counter() - start)
        if due.validate_slides and goes_on:  # its time is limited in another way
            self.validate_slides()
        return done or ((due.validate or due.validate_slides) and goes_on and self.stops_early())

    def validate(self) -> None:
        """Collective: validate, and note the score, in the checkpoint of this step as well."""
        progress = self.progress
        self.world.activity.begin("validating")
        progress.miou = self.validator.run(progress.step)
        progress.validation_due = False
        if self.options.best_by == "miou":
            progress.add_score(progress.miou)
        self.note_score()
        self.samples.draw()

    def validate_slides(self) -> None:
        """Collective: validate on whole slides. If the run has to stop meanwhile, it stays due."""
        progress, cut_short = self.progress, False
        self.world.activity.begin("validating on whole slides")
        if self.slides is not None:
            left = self.stopping.seconds_left(progress.longest_pause)
            score, cut_short = self.slides.run(progress.step, left, lambda: self.stopping.signalled)
            if self.options.best_by != "miou" and not cut_short:
                progress.add_score(score)
        progress.slides_due = cut_short
        if self.slides is not None and not cut_short:
            self.note_score()
            self.validator.report()

    def note_score(self) -> None:
        """Write the scores into the checkpoint of this step, if there is one."""
        if self.world.is_first:
            self.checkpointer.add_score(self.progress.step, self.progress.score_to_state())

    def save(self, must: bool) -> None:
        """Collective: write a checkpoint of what all ranks hold; see `Checkpointer.save`."""
        self.world.activity.begin("writing a checkpoint")
        self.trainer.average_statistics()  # Horovod: one model on all ranks
        self.progress.dropped = self.loader.dropped
        state = {**self.progress.to_state(self.world), **self.description()}
        if self.world.is_first:
            self.checkpointer.save(state, must)

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint says of the run beside its progress."""
        return {**self.trainer.description(), "batch_size": self.options.batch_size}

    def stops_early(self) -> bool:
        """Return whether the last validations, which are the same on all ranks, brought nothing better."""
        return 0 < self.options.early_stopping <= self.progress.validations

    def log_interval(self, rate: float) -> None:
        """Collective: write down the training since the last log, and begin a new interval."""
        step, loader = self.progress.step, self.loader
        values = self.progress.interval.values(self.world, step, loader.wait_seconds)
        reasons = {slide: reason for slide, (reason, _) in loader.dropped.items()}
        bad = {slide: reason for rank in self.world.gather(reasons) for slide, reason in rank.items()}
        self.log.record(step, "train", {**values, "bad_slides": len(bad), "learning_rate": rate})
        if self.bad_slides_allowed is not None and len(bad) > self.bad_slides_allowed:  # on all ranks
            raise too_many_bad_slides(bad, self.bad_slides_allowed)
        self.progress.interval = Interval(Counts(self.trainer.num_classes), step)
        self.progress.interval.start(loader.wait_seconds)
