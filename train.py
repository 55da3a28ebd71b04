#!/usr/bin/env python3
"""Train EfficientDet or DeepLabV3+ for semantic segmentation of whole-slide images, on one or many ranks.

    python train.py --slide_path slides --label_path masks                      one process
    mpirun -np 4 -map-by ppr:4:node -x PATH python -u train.py ...               GPU nodes
    mpiexec.hydra -np 64 -map-by ppr:1:socket python -u train.py --no_cuda ...   CPU clusters
    sh run_train.sh ...                                                          sets up what that needs

A step is one image: a batch of B on N ranks is B*N steps. Exit codes: 0 done; 2 wrong options or unusable
input; 1 failed; 75 stopped by SIGTERM or SIGUSR1 with a checkpoint written.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import psutil

from samplers import (
    Batch,
    Loader,
    PatchInfo,
    SamplerConfig,
    SamplerError,
    draw_samples,
    training_loader,
    validation_loader,
)
from samplers.pairs.pairing import SlidePair
from training import memory
from training.data import prepare_slides, sampler_config, split_values
from training.options import option_values, parse_options
from training.resume import find_checkpoint, learning_options
from training.schedule import SCALINGS, learning_rate
from training.summary import end_summary, start_summary
from utils.cli import EXIT_DONE, EXIT_STOPPED, UserError, report_user_error, show_warnings
from utils.ranks import killed_rank
from utils.startup import configure_environment, limit_malloc

if TYPE_CHECKING:  # imported in run(): wrong options are answered before TensorFlow has loaded
    from training.mining import HardMiner
    from training.progress import Interval, Laps, Position
    from training.run_log import RunLog
    from training.trainer import StepResult, Trainer
    from utils.ranks.world import World

CALIBRATION_BATCHES = 50  # a rank, forward only; of a short run an eighth of its updates


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    configure_environment(options)
    limit_malloc(options.recompute)
    show_warnings()
    try:
        return run(options)
    except UserError as error:
        return report_user_error(error, "train.py")
    except Exception as error:
        expected = isinstance(error, (FloatingPointError, SamplerError, CheckpointWriteError))
        text = f"{error}\n" if expected else f"\n{traceback.format_exc()}"
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # TensorFlow's
            text = f"{str(error)[:500]}\n{memory.advice(options)}\n"
        killed_rank.end_at_once(text)


class CheckpointWriteError(OSError):
    """The last checkpoint of a run cannot be written."""


def run(options: argparse.Namespace) -> int:
    from training.progress import Position
    from training.run_log import RunLog
    from training.trainer import Trainer
    from utils.ranks.world import init_world, select_devices
    from utils.reporting.environment import describe_environment

    # 1. Ranks and devices.
    world = init_world(options.horovod, alone=options.accumulate_steps == 1)
    devices = world.all_or_none(lambda: select_devices(world, options.no_cuda))

    if options.memory_report:
        found = world.on_rank_0(lambda: memory.report(options, world.local_size))
        sys.stdout.write(f"{found}\n" if world.is_first else "")

    # 2. Slides: found, checked and split before anything that takes long; of a run that goes on, as it was.
    checkpoint = world.on_rank_0(lambda: find_checkpoint(options))
    train_pairs, val_pairs, label_map = prepare_slides(
        options, world, options.log_dir if checkpoint is not None else None
    )

    # 3. Model and optimizer; rank 0's values everywhere before the first step.
    trainer = world.all_or_none(lambda: Trainer(options, label_map.num_classes, world))
    state: dict[str, Any] = {}
    if checkpoint is not None:
        state = world.on_rank_0(lambda: trainer.restore(checkpoint))
    elif options.weights_path is not None:
        report = world.all_or_none(lambda: trainer.load(options.weights_path) if world.is_first else "")
        sys.stdout.write(f"{report}\n" if world.is_first else "")
    trainer.synchronise()  # Horovod: rank 0's start, or what it loaded

    # 4. The folder of this run.
    log_dir = world.on_rank_0(lambda: make_log_dir(options))
    if world.is_first:
        write_json(option_values(options), log_dir / "options.json")
        write_json(split_values(train_pairs, val_pairs), log_dir / "splits.json")
    environment = describe_environment(world, devices)
    if world.is_first:
        write_json(environment, log_dir / "environment.json")

    # 5. Train, validate, save, export.
    config = sampler_config(options, label_map)
    start = Position.of(state, options, world)
    with ExitStack() as stack:
        log = stack.enter_context(
            RunLog(log_dir if world.is_first else None, options.num_steps, start.step, options.profile)
        )
        shared = world.rank, world.size, options.sample_processes
        train_loader = stack.enter_context(
            training_loader(train_pairs, config, *shared, start.batch, start.dropped)
        )
        val_loader = stack.enter_context(validation_loader(val_pairs, config, *shared))
        slides = len(train_pairs), len(val_pairs)
        log.say(start_summary(options, environment, trainer, slides, log_dir))
        if state:
            log.say(f"goes on at step {start.step} from {checkpoint}{start.remark}")
        else:
            log.hparams({"ranks": world.size, **learning_options(options)})
        return Loop(
            options, world, trainer, config, train_pairs, train_loader, val_loader, log, log_dir, start
        ).run()


def make_log_dir(options: argparse.Namespace) -> Path:
    """The folder of this run: the one asked for, or one named after the model and the time."""
    name = f"{options.model}_{options.img_size}_{time.strftime('%Y%m%d-%H%M%S')}"
    log_dir = (options.log_dir or Path("logs") / name).absolute()
    log_dir.mkdir(parents=True, exist_ok=True)
    return log_dir


@dataclass
class Loop:
    """The training loop. All ranks run it in step: what is collective happens at the same step on each."""

    options: argparse.Namespace
    world: World
    trainer: Trainer
    config: SamplerConfig
    train_pairs: list[SlidePair]
    train_loader: Loader
    val_loader: Loader
    log: RunLog
    log_dir: Path
    start: Position
    step: int = field(init=False)  # images seen, over all ranks
    best: tuple[float, int] = field(init=False)
    validations: int = field(init=False)  # since the best one
    miou: float = field(init=False)
    drawn: list[PatchInfo] = field(default_factory=list)
    miner: HardMiner = field(init=False)
    longest_pause: float = field(init=False)  # seconds of a validation and its checkpoint
    validation_due: bool = field(init=False)  # a signal came between
    stop_requested: bool = False
    validated: int = 0  # patches of the last validation
    laps: dict[str, Laps] = field(init=False)  # seconds of a batch, by split

    def __post_init__(self) -> None:
        self.step, self.best, self.miou = self.start.step, self.start.best, self.start.miou
        self.validations, self.longest_pause = self.start.validations, self.start.longest_pause
        self.validation_due = self.start.validation_due
        from training.progress import Laps

        self.laps = {"train": Laps(), "val": Laps()}

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm sends them before the time is up
            signal.signal(number, self.request_stop)
        if self.validation_due:  # the last checkpoint was written in its place, or before it
            self.validate()
        unfinished = self.step < self.options.num_steps and not self.stops_early()
        stopped = unfinished and self.train()
        self.log.close_bar()
        if stopped:
            self.world.barrier()  # the launcher ends all ranks soon after the first, and rank 0 writes
            self.log.say(f"stopped at step {self.step} with a checkpoint in {self.log_dir / 'checkpoints'}")
            return EXIT_STOPPED
        if self.step > self.start.step or not self.has("model"):
            self.log.say("exporting the model ...")
            self.export()
        if self.options.debug:
            from training.forecast import forecast

            parameters = self.trainer.model.count_params()
            self.log.say(
                forecast(self.options, self.world, self.log_dir, parameters, self.laps, self.validated)
            )
        self.log.say(end_summary(self.log_dir))
        self.log.say(f"validation mIoU {self.miou:.4f} (step {self.step})")
        return EXIT_DONE

    def train(self) -> bool:
        """Trains to `num_steps`, or as --early_stopping says; whether a signal or the time ended it before."""
        options, images = self.options, self.options.batch_size * self.world.size
        # Adasum's sum is as long as one rank's gradient where they agree, so its rate is one rank's.
        scale = SCALINGS["none" if options.adasum else options.lr_scaling](self.world.size)
        peak = options.learning_rate * scale
        freeze_step = (1 - options.freeze_bn) * options.num_steps
        interval = self.new_interval(self.start.interval)
        if self.world.is_first:  # an earlier end's, that would be taken for this one's
            shutil.rmtree(self.log_dir / "model", ignore_errors=True)
        batches = self.mined() if options.hard_mining else iter(self.train_loader)
        self.log.now("the first step takes longest")
        self.laps["train"].start()
        for number, batch in enumerate(batches, 1):
            rate = learning_rate(
                self.step, options.num_steps, options.warmup_steps, peak, options.lr_schedule, freeze_step
            )
            frozen = self.step >= freeze_step
            if frozen and self.step - images < freeze_step:
                batch = self.calibrate(batch, batches)
            self.log.profile(self.step)
            stop = self.stop_requested or self.time_is_up()
            with self.log.traced(number):
                result = self.trainer.train_step(batch.images, batch.labels, rate, batch.index, frozen, stop)
            self.step += images
            if not math.isfinite(result.loss):
                self.fail_on_loss(batch, result)
            interval.counts.add(*result.counts)
            self.drawn.extend(batch.patches if len(self.drawn) < 500 else [])
            wait = self.train_loader.wait_seconds - interval.start_wait
            self.log.progress(self.step, result.loss, interval, wait)
            self.laps["train"].lap()
            if number % options.accumulate_steps:
                continue  # the weights are those of the last update, and gradients are no part of a checkpoint
            done = self.step >= options.num_steps
            if self.crossed(options.log_every) or done:
                self.log_interval(interval, rate)
                interval = self.new_interval()
            self.validation_due = self.crossed(options.validate_every) or done
            saves = self.validation_due or self.crossed(options.checkpoint_every or options.num_steps)
            with interval.paused():
                pause = time.perf_counter()
                if self.validation_due and (done or not result.stop):
                    if options.time_limit is not None and not self.longest_pause:
                        self.save(batch.index + 1, interval, must=False)  # who knows how long it will take
                    self.validate()
                    done = done or self.stops_early()
                if saves or result.stop:
                    self.save(batch.index + 1, interval, must=done or result.stop)
                self.longest_pause = max(self.longest_pause, time.perf_counter() - pause)
            self.laps["train"].start()
            if done or result.stop:
                return not done
        raise AssertionError("the training loader is endless")

    def calibrate(self, batch: Batch, batches: Iterator[Batch]) -> Batch:
        """Collective: batch norm's averages anew, before they are frozen. Returns the batch to go on with."""
        updates = self.options.num_steps // (self.options.batch_size * self.world.size)
        for i in range(max(1, min(CALIBRATION_BATCHES, updates // 8))):
            self.trainer.calibrate(batch.images, 2 / (i + 2))  # a mean in which the last ones weigh most
            batch = next(batches)
        return batch

    def mined(self) -> Iterator[Batch]:
        from training.mining import HardMiner

        options = self.options
        self.miner = HardMiner(
            iter(self.train_loader),
            self.trainer,
            options.hard_mining_threshold,
            options.hard_mining_tries,
            *self.start.mined,
        )
        return iter(self.miner)

    def stops_early(self) -> bool:
        """Whether the last validations, the same on all ranks, brought nothing better."""
        return 0 < self.options.early_stopping <= self.validations

    def time_is_up(self) -> bool:
        """Whether it is time to write a checkpoint and stop, by this rank's clock."""
        limit = self.options.time_limit
        reserve = max(30.0, 2 * self.longest_pause)
        return limit is not None and time.time() - psutil.Process().create_time() + reserve > limit

    def has(self, name: str) -> bool:
        """Collective: whether rank 0 sees this in log_dir; on a shared file system others may see it later."""
        return self.world.broadcast((self.log_dir / name).exists())

    def fail_on_loss(self, batch: Batch, result: StepResult) -> NoReturn:
        """All ranks are here at the same step. FloatingPointError, with the batch that did it in a file."""
        path = self.log_dir / f"bad_batch_step_{self.step}_rank_{self.world.rank}.npz"
        mine = result.counts[2]
        where = f"of rank {self.world.rank} is {mine}"
        if not math.isfinite(mine):
            np.savez_compressed(path, images=batch.images, labels=batch.labels)
            where += f": its patches {[str(patch) for patch in batch.patches]} are in {path}"
        raise FloatingPointError(
            f"the loss is {result.loss} at step {self.step}, that {where}. The last good checkpoint in "
            f"{self.log_dir / 'checkpoints'} stays; a lower --learning_rate may help"
        )

    def crossed(self, every: int) -> bool:
        """Whether the last update crossed a multiple of `every` steps."""
        images = self.options.batch_size * self.options.accumulate_steps * self.world.size
        return self.step // every > (self.step - images) // every

    def request_stop(self, number: int, frame: Any) -> None:
        self.stop_requested = True

    def log_interval(self, interval: Interval, rate: float) -> None:
        """Collective: the training since the last log."""
        seconds = interval.seconds
        values = self.trainer.summed(interval.counts).summary()
        wait = max(self.world.gather(self.train_loader.wait_seconds - interval.start_wait))
        values.update(seconds=seconds, images_per_second=(self.step - interval.start_step) / seconds)
        bad = {slide for rank in self.world.gather(set(self.train_loader.dropped)) for slide in rank}
        values.update(sampler_wait=wait / seconds, bad_slides=len(bad), learning_rate=rate)
        if self.options.hard_mining:
            candidates, rejected = self.mined_so_far()
            values["rejected"] = rejected / candidates
            self.miner.candidates = self.miner.rejected = 0
        self.log.record(self.step, "train", values)

    def mined_so_far(self) -> tuple[int, int]:
        """Collective: candidates and rejected patches of all ranks since the last log."""
        mine = (self.miner.candidates, self.miner.rejected) if self.options.hard_mining else (0, 0)
        candidates, rejected = zip(*self.world.gather(mine))
        return sum(candidates), sum(rejected)

    def new_interval(self, state: dict[str, Any] | None = None) -> Interval:
        from training.progress import Interval

        return Interval.begin(self.trainer.num_classes, self.step, self.train_loader.wait_seconds, state)

    def validate(self) -> None:
        """Collective: metrics in inference mode over the whole validation set."""
        from training.report import write_report
        from training.validate import validate

        self.laps["val"].start()

        def progress(images: int) -> None:
            self.laps["val"].lap()
            self.log.now(f"validating, {images * self.world.size} patches")

        found = validate(self.trainer, self.val_loader, progress)
        self.log.now("writing")
        values = found.values()
        self.log.record(self.step, "val", values)
        self.log.pictures(self.step, [shown.picture for shown in found.mixed])
        self.miou, before = values["miou"], self.best
        self.best = max(self.best, (self.miou, self.step), key=lambda best: best[0])
        self.validations = 0 if self.best != before else self.validations + 1
        self.validation_due = False
        self.draw_patches()
        if self.options.histograms:
            self.log.histograms(self.step, self.trainer.model.trainable_variables)
        if self.world.is_first:
            write_report(self.log_dir, found)
        self.validated = found.counts.images

    def draw_patches(self) -> None:
        """Collective: samples/<slide>.png, once, with the patches of all ranks' first batches."""
        if self.has("samples"):
            return
        patches = [patch for rank in self.world.gather(self.drawn) for patch in rank]
        if self.world.is_first and patches:  # none yet where a run goes on with a validation
            draw_samples(self.log_dir / "samples", self.train_pairs, self.config, patches)

    def save(self, next_batch: int, interval: Interval, must: bool) -> None:
        """Collective: a checkpoint of what all ranks hold, written by rank 0.

        If it cannot be written (a full disk), the run goes on, unless it is at its end (`must`).
        """
        from training.checkpoint import prune_checkpoints, save_checkpoint

        self.trainer.average_statistics()  # Horovod
        counts = self.trainer.summed(interval.counts)
        mined = self.mined_so_far()
        ranks = self.world.gather({"next_batch": next_batch, "dropped": self.train_loader.dropped})
        if not self.world.is_first:
            return
        folder = self.log_dir / "checkpoints"
        state = {
            "step": self.step,
            "ranks": ranks,
            "batch_size": self.options.batch_size,
            "best": self.best,
            "validations": self.validations,
            "miou": self.miou,
            "validation_due": self.validation_due,
            "longest_pause": self.longest_pause,
            "mined": mined,
            "interval": interval.state(counts),
            **self.trainer.state(),
        }
        try:
            save_checkpoint(folder, self.trainer.checkpoint, state)
            prune_checkpoints(folder, self.options.keep_checkpoints, self.best[1])
        except OSError as error:
            if must:
                raise CheckpointWriteError(
                    f"no checkpoint at step {self.step}: {error}. Make room and start again: the run goes on from "
                    f"the last one in {folder}"
                ) from error
            self.log.say(f"warning: no checkpoint at step {self.step}, the run goes on: {error}")

    def export(self) -> None:
        """Rank 0 writes <log_dir>/model: uint8 RGB in, class probabilities out, in inference mode."""
        if self.world.is_first:
            self.trainer.export(self.log_dir / "model")
        self.world.barrier()


def write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
