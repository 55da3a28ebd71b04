#!/usr/bin/env python3
"""Train EfficientDet or DeepLabV3+ for semantic segmentation of whole-slide images, on one or many ranks.

    python train.py --slide_path slides --label_path masks                      one process
    mpirun -np 4 -map-by ppr:4:node -x PATH python -u train.py ...               GPU nodes
    mpiexec.hydra -np 64 -map-by ppr:1:socket python -u train.py --no_cuda ...   CPU clusters
    sh run_train.sh ...                                                          sets up what that needs

A step is one image: a batch of B on N ranks is B*N steps. Exit codes: 0 done; 2 wrong options or unusable
input; 1 failed; 75 stopped by SIGTERM or SIGUSR1, 130 by Ctrl-C, with a checkpoint written; 76 ended because a
rank did not go on.
"""

from __future__ import annotations

from utils.cli import EXIT_STOPPED
from utils.interrupt import end_quietly

if __name__ == "__main__":  # first, as what follows takes seconds; until the run has something to save
    end_quietly(EXIT_STOPPED)

import argparse
import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samplers import SamplerError, training_loader, validation_loader
from training import memory
from training.chosen_slides import choose_slides
from training.data import prepare_slides, sampler_config, split_values
from training.label_summary import LABELS_FILE, RunLabels
from training.log_dir import check_log_dir, lock_log_dir, lock_run_to_go_on, make_log_dir
from training.option_checks import check_device_options, parse_options
from training.options import option_values
from training.resume import find_checkpoint, learning_options
from utils.cli import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    RunError,
    UserError,
    report_user_error,
    show_warnings,
)
from utils.files import write_atomically
from utils.ranks import killed_rank
from utils.startup import configure_environment, import_tensorflow, limit_malloc

if TYPE_CHECKING:
    from training.loop import Loop

PROGRAM = "train.py"


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    configure_environment(options)
    limit_malloc(options.recompute)
    show_warnings()
    try:
        return run(options)
    except UserError as error:
        return report_user_error(error, PROGRAM)
    except Exception as error:
        expected = FloatingPointError, SamplerError, RunError
        killed_rank.end_at_once(killed_rank.text_of(error, memory.advice(options), expected))


def run(options: argparse.Namespace) -> int:
    """Collective: set everything up, train, and return the exit code. UserError before training only."""
    # TensorFlow is imported here: wrong options are answered before it has loaded.
    import_tensorflow(options.verbose)
    from models import load_weights
    from training.checkpoint import Checkpointer
    from training.loop import Loop
    from training.precision import settle_precision
    from training.profiler import Profiler
    from training.progress import Progress
    from training.run_log import RunLog
    from training.samples import Samples
    from training.slide_validation import SlideValidator
    from training.summary import start_summary
    from training.tracking import Tracking
    from training.trainer import Trainer
    from training.validator import Validator
    from utils.ranks.devices import devices_of_rank
    from utils.ranks.heartbeat import Heartbeat
    from utils.ranks.world import init_world
    from utils.reporting.environment import describe_environment

    # 1. Ranks and devices.
    world = init_world(options.horovod, options.accumulate_steps == 1, options.ranks_per_patch)
    devices = devices_of_rank(world, options.no_cuda)
    heartbeat = Heartbeat(world, 60 * options.stall_limit or math.inf) if world.size > 1 else None
    check_device_options(options, bool(devices))
    settle_precision(options, bool(devices), world)
    if options.memory_report:
        found = world.on_rank_0(lambda: memory.report(options, world.local_size, bool(devices)))
        sys.stdout.write(f"{found}\n" if world.is_first else "")

    # 2. Slides: found, checked and split before anything that takes long. A run that goes on keeps its split.
    world.activity.begin("checking the slides")
    world.on_rank_0(lambda: check_log_dir(options))
    world.on_rank_0(lambda: lock_run_to_go_on(options))
    checkpoint = world.on_rank_0(lambda: find_checkpoint(options))
    resumed = None if checkpoint is None else options.log_dir
    train_pairs, val_pairs, label_map, facts = prepare_slides(options, world, resumed)
    config = sampler_config(options, label_map, world.group)
    whole_slides = world.all_or_none(lambda: choose_slides(options, val_pairs))
    labels = RunLabels.of(options, config, train_pairs, val_pairs, facts, world, resumed)

    # 3. Model and optimizer.
    world.activity.begin("building the model")
    trainer = world.all_or_none(lambda: Trainer(options, label_map.num_classes, world, labels.weights))
    if checkpoint is not None:
        state = world.on_rank_0(lambda: trainer.restore(checkpoint))
        progress, remark = Progress.from_state(state, options, world, trainer.num_classes)
    else:
        progress, remark = Progress.begin(trainer.num_classes), ""
        if options.weights_path is not None:
            loaded = world.on_rank_0(lambda: str(load_weights(trainer.model, options.weights_path)))
            sys.stdout.write(f"{loaded}\n" if world.is_first else "")
    trainer.synchronise()  # Horovod: rank 0's variables on every rank

    # 4. The folder of this run.
    log_dir = world.on_rank_0(lambda: make_log_dir(options))
    world.on_rank_0(lambda: lock_log_dir(log_dir))
    environment = describe_environment(world, devices)
    if world.is_first:
        write_json(option_values(options), log_dir / "options.json")
        write_json(split_values(train_pairs, val_pairs), log_dir / "splits.json")
        write_json(environment, log_dir / "environment.json")
        write_json(labels.to_json(), log_dir / LABELS_FILE)

    # 5. Train and validate.
    world.activity.begin("starting the samplers")
    with ExitStack() as stack:
        written = log_dir if world.is_first else None
        log = stack.enter_context(RunLog(written, options.num_steps, progress.step, progress.due))
        share = world.group.index, world.group.count, options.sample_processes
        start, gather = (progress.next_batch, progress.dropped), world.gather_in_group
        train_loader = stack.enter_context(training_loader(train_pairs, config, *share, *start, gather))
        val_loader = stack.enter_context(
            world.all_or_none(lambda: validation_loader(val_pairs, config, *share, gather, world))
        )
        tracking = Tracking(options, written, {"ranks": world.size, **option_values(options)}, log.say)
        log.tracking = stack.enter_context(tracking)
        profiler = Profiler(log.profile_dir, options.profile, log.say)
        stack.callback(profiler.stop)
        slides = len(train_pairs), len(val_pairs)
        log.say(start_summary(options, environment, trainer, slides, labels.text(), log_dir))
        slide_validator = None
        if whole_slides:
            slide_validator = SlideValidator(
                options, trainer, whole_slides, label_map, labels.names, log, log_dir
            )
            log.say(str(slide_validator))
        if checkpoint is not None:
            log.say(f"goes on at step {progress.step} from {checkpoint}{remark}")
        else:
            log.hparams({"ranks": world.size, **learning_options(options)})
        loop = Loop(
            options=options,
            world=world,
            trainer=trainer,
            loader=train_loader,
            validator=Validator(trainer, val_loader, log, log_dir, options.histograms),
            samples=Samples(log_dir / "samples", world, train_pairs, config, log.dispensable),
            checkpointer=Checkpointer(
                log_dir / "checkpoints", trainer.checkpoint, options.keep_checkpoints, log.say
            ),
            profiler=profiler,
            log=log,
            log_dir=log_dir,
            progress=progress,
            slides=slide_validator,
            bad_slides_allowed=config.bad_slides_allowed(len(train_pairs)),
        )
        if heartbeat is not None:
            heartbeat.rescuer = loop.rescue
        return train(loop, labels.names)


def train(loop: Loop, class_names: list[list[str]]) -> int:
    """Collective: train, export the model and say where everything is. Return the exit code."""
    from training.card import make_card
    from training.forecast import forecast
    from training.summary import end_summary
    from training.trainer import export_model

    start, world, trainer, log, log_dir = loop.progress.step, loop.world, loop.trainer, loop.log, loop.log_dir
    stopped = loop.train()
    loop.rescue.forget()
    log.bar.close()
    if stopped:
        # Horovod: all wait, since the launcher ends all ranks soon after the first one, and rank 0 writes.
        interrupted = any(world.gather(loop.stopping.interrupts > 0))
        log.say(f"stopped at step {loop.progress.step} with a checkpoint in {loop.checkpointer.folder}")
        return EXIT_INTERRUPTED if interrupted else EXIT_STOPPED

    # 6. Export, and where everything is.
    exported = world.broadcast((log_dir / "model").exists())
    if loop.progress.step > start or not exported:
        log.say("exporting the model ...")
        world.activity.begin("exporting the model")
        if world.is_first:
            card = None
            with log.dispensable("the model card"):
                card = make_card(log_dir, class_names)
            export_model(loop.options, trainer.model, log_dir / "model", class_names, card)
        world.barrier()
    if loop.options.debug:
        log.say(forecast(loop))
    if log.tracking is not None:
        log.tracking.finished = True
    log.say(end_summary(log_dir))
    log.say(f"validation mIoU {loop.progress.miou:.4f} (step {loop.progress.step})")
    return EXIT_STOPPED if loop.progress.slides_due else EXIT_DONE


def write_json(value: Any, path: Path) -> None:
    """Write a file of the run, whole or not at all: a torn options.json would keep the run from being continued."""
    write_atomically(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n"))


if __name__ == "__main__":
    sys.exit(main())
