#!/usr/bin/env python3
"""Cuts slides into patches with masks, positive where there is tumour, as training data.

    sh run_prepro.sh --root /data/CAMELYON17 --patch_size 1024 --save_neg
    python -m CAMELYON17_PREPROCESSING.preprocess --train_tumor_wsi_path slides --train_tumor_mask_path xml

It can be stopped at any moment and run again. Exit codes: 0 done; 1 some slides could not be used (all others are
done), or files could not be written; 2 wrong options or unusable input; 130 Ctrl-C.
"""

from __future__ import annotations

from utils.interrupt import end_quietly

if __name__ == "__main__":  # first, as what follows takes seconds to import
    end_quietly()

import argparse
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.forecast import Forecast, forecast
from CAMELYON17_PREPROCESSING.options import PROGRAM, build_parser, parse_options, settings_of
from CAMELYON17_PREPROCESSING.schedule import PatchOutcome, process
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from CAMELYON17_PREPROCESSING.sources import find_sources
from utils.cli import EXIT_DONE, EXIT_FAILED, NO_ROOM, UserError, report_user_error, show_warnings
from utils.failures import write_failures_to
from utils.files import OutputError
from utils.ranks.launcher import launcher_rank
from utils.ranks.single import Ranks, require_company
from utils.reporting.progress_bar import SlideBar
from utils.startup import import_tensorflow

__all__ = ["build_parser", "find_sources", "main", "parse_options", "settings_of"]


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    show_warnings()
    try:
        return run(options, _ranks())
    except UserError as error:
        return report_user_error(error, PROGRAM)


def _ranks() -> Ranks:
    """Return the ranks of an MPI launcher, through Horovod."""
    require_company()
    if launcher_rank()[1] == 1:
        return Ranks()
    # TensorFlow computes nothing here, but would take the GPU's memory.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")  # ranks that are done wait for the others
    import_tensorflow(verbose=False)
    from utils.ranks.world import init_world

    return init_world(True)


def run(options: argparse.Namespace, world: Ranks) -> int:
    """Cut this rank's slides and return the exit code. Collective."""
    settings = settings_of(options)
    folders = Folders(options.save_positive_path, options.save_tumor_negative_path)
    sources, left_out, warnings = world.on_rank_0(lambda: find_sources(options))
    world.on_rank_0(lambda: store.prepare(folders, settings))
    write_failures_to(folders.positive)
    mine = sources[world.rank :: world.size]
    pending = world.all_or_none(lambda: [source for source in mine if not store.is_finished(folders, source)])
    counts = world.gather(len(pending))
    if world.is_first:
        sys.stderr.write("".join(f"warning: {line}\n" for line in warnings))
        print(f"{len(sources)} slides, {len(sources) - sum(counts)} of them are finished already", flush=True)
    expected = sum(world.gather(forecast(pending, settings)), Forecast())
    if world.is_first:
        print("".join(f"{line}\n" for line in expected.said(folders.positive)), end="", flush=True)
    error, outcome, start = "", PatchOutcome(), time.monotonic()
    try:
        anew = {source.name for source in pending if not store.was_begun(folders, source, settings)}
        store.remove_slides(folders, anew)
        if (
            world.is_first
        ):  # slides that have lost their label, or that stage_labels.csv no longer calls negative
            store.remove_slides(folders, left_out & store.finished_slides(folders))
        if pending:
            outcome = _process(pending, settings, folders, options.num_threads, world.is_first)
    except OutputError as failure:
        error = NO_ROOM.format(failure)
    except BrokenProcessPool:
        error = (
            "a worker process was killed (out of memory? Take fewer --num_threads); the same command goes on"
        )
    if world.is_first and settings.masks_hold_classes:
        print(
            f"masks have the classes, and 255 where it is not known: train with --label_map {_of_masks(settings)}"
        )
    return _finish(world, folders, outcome, error, time.monotonic() - start)


def _of_masks(settings: PatchSettings) -> str:
    """Return the label map to train with on masks that hold classes."""
    values = [f"{value}:{value}" for value in range(1, settings.classes.num_classes)]
    return " ".join([*values, "255:ignore"])


def _process(
    pending: list[SourceSlide], settings: PatchSettings, folders: Folders, processes: int, shown: bool
) -> PatchOutcome:
    with SlideBar("preprocessing", len(pending), shown) as bar:
        return process(pending, settings, folders, processes, bar.advance)


def _finish(world: Ranks, folders: Folders, outcome: PatchOutcome, error: str, seconds: float) -> int:
    """Let rank 0 write the tables and a summary; return the exit code.

    Collective: a rank whose slides were bad must not end before the others.
    """
    seconds = max(world.gather(seconds))
    outcomes = world.gather(outcome)
    errors = [f"[rank {rank}] {text}" for rank, text in enumerate(world.gather(error)) if text]
    bad = {slide: reason for part in outcomes for slide, reason in part.bad.items()}
    done = sum(sum(part.patches.values()) for part in outcomes)

    left_out = [line for part in outcomes for line in part.left_out]

    def summarise() -> bool:
        for line in left_out:
            sys.stderr.write(f"warning: {line}\n")
        for slide, reason in sorted(bad.items()):
            sys.stderr.write(f"bad slide, left out: {slide}: {reason}\n")
        if bad:
            sys.stderr.write(f"{len(bad)} slides could not be used, all others are done\n")
        for reason in sorted({reason for part in outcomes for reason in part.discarded}):
            count = sum(part.discarded.get(reason, 0) for part in outcomes)
            print(f"discarded, {reason}: {count}")
        try:
            totals = store.write_tables(folders)
        except OutputError as failure:
            errors.append(NO_ROOM.format(failure))
        for line in errors:
            sys.stderr.write(f"{PROGRAM}: error: {line}\n")
        if done:
            print(f"{done} patches in {seconds:.1f} s, {done / seconds:.1f}/s")
        elif not bad and not errors:
            print("all slides are finished: nothing to do")
        for kind in store.KINDS if not errors else ():
            print(f"{kind}: {totals[kind]} patches in {getattr(folders, kind)}", flush=True)
        return bool(bad or errors)

    return EXIT_FAILED if world.on_rank_0(summarise) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
