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
from dataclasses import fields
from pathlib import Path

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.schedule import PatchOutcome, process
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers.pairs.camelyon import camelyon16, camelyon17, files_below, of_centers
from samplers.pairs.pairing import SlidePair, name_some, pair_files
from samplers.slides.errors import DataError
from utils.cli import (
    EXIT_DONE,
    EXIT_FAILED,
    NO_ROOM,
    HelpFormatter,
    Parser,
    UserError,
    fraction,
    positive_float,
    positive_int,
    random_seed,
    report_user_error,
    show_warnings,
)
from utils.files import OutputError
from utils.ranks.launcher import launcher_rank
from utils.ranks.single import Ranks
from utils.reporting.progress_bar import SlideBar
from utils.startup import import_tensorflow

PROGRAM = "preprocess.py"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Cut the slides of CAMELYON16 or 17 into patches with masks.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("options of the original suite").add_argument
    add("--patch_size", type=positive_int, default=1024, help="side of a patch in pixels")
    add("--num_threads", type=positive_int, default=4, help="number of worker processes per rank")
    add("--save_neg", action="store_true", help="also save patches without tumour")
    add("--save_png", action="store_true", help="save a picture of each slide's regions and patches")
    add("--proc_center", type=int, nargs="+", default=[-1], help="medical centres to process, -1 for all")
    add("--train_tumor_wsi_path", type=Path, help="folder of slides, instead of --root")
    add("--train_tumor_mask_path", type=Path, help="folder of the annotations (xml) or masks of these slides")
    add(
        "--save_positive_path",
        type=Path,
        help="folder for the patches with tumour (default: data/<dataset>_patches_…)",
    )
    add(
        "--save_tumor_negative_path",
        type=Path,
        help="folder for the patches without tumour (default: beside those with tumour)",
    )
    add("--format", default="tif", help="file ending of the slides")
    add = parser.add_argument_group("ours").add_argument
    add("--root", type=Path, help="folder of CAMELYON16 or 17 in its public layout")
    add("--spacing", type=positive_float, help="spacing of the patches in µm/px (default: level 0)")
    add("--stride", type=positive_int, help="pixels from one patch to the next (default: --patch_size)")
    add("--min_tumor", type=fraction, default=0.01, help="smallest share of tumour in a positive patch")
    add("--min_tissue", type=fraction, default=0.5, help="smallest share of tissue in a negative patch")
    add(
        "--max_patches",
        type=positive_int,
        help="largest number of patches of each kind per slide, chosen at random",
    )
    add("--seed", type=random_seed, default=0, help="random seed of that choice")
    add(
        "--output_format",
        choices=["png", "jpg"],
        default="png",
        help="file format of the patches; masks are always png",
    )
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options with their folders filled in, or exit with code 2 if one is wrong."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if (options.root is None) == (options.train_tumor_wsi_path is None):
        parser.error("give either --root or --train_tumor_wsi_path, where the slides are")
    if options.train_tumor_mask_path is not None and options.train_tumor_wsi_path is None:
        parser.error("--train_tumor_mask_path goes with --train_tumor_wsi_path")
    for name in ("root", "train_tumor_wsi_path", "train_tumor_mask_path"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name}: there is no folder {path}")
    if options.max_patches is None and options.seed != parser.get_default("seed"):
        parser.error("--seed goes with --max_patches")
    if options.save_tumor_negative_path is not None and not options.save_neg:
        parser.error("--save_tumor_negative_path goes with --save_neg")
    data: Path = options.root or options.train_tumor_wsi_path
    base = Path("data") / f"{data.resolve().name}_patches_{options.patch_size}"
    options.save_positive_path = options.save_positive_path or base / "positive"
    options.save_tumor_negative_path = (
        options.save_tumor_negative_path or options.save_positive_path.parent / "negative"
    )
    return options


def settings_of(options: argparse.Namespace) -> PatchSettings:
    """Return the options of the settings' names."""
    values = {field.name: getattr(options, field.name) for field in fields(PatchSettings)}
    return PatchSettings(**{**values, "stride": options.stride or options.patch_size})


def find_sources(options: argparse.Namespace) -> tuple[list[SourceSlide], set[str], list[str]]:
    """Return the slides, the names of slides that are left out, and warnings.

    The largest slides come first, so that ranks get about the same. DataError: there are no slides.
    """
    if options.root is not None:
        pairs, warnings = _of_root(options.root, options.format)
    else:
        slides = files_below([options.train_tumor_wsi_path], options.format)
        labels = options.train_tumor_mask_path
        label_files = [] if labels is None else files_below([labels], "xml") or files_below([labels], "tif")
        # CAMELYON's annotations lie in one folder, for all centres.
        pairs, warnings = pair_files(slides, label_files, "normal", orphans_allowed=True)
        if not slides or (labels is not None and not any(pair.label for pair in pairs)):
            raise DataError(
                f"{len(slides)} .{options.format} slides in {options.train_tumor_wsi_path} and "
                f"{len(label_files)} annotations or masks in {labels}: none belong together"
            )
    # Some slides of CAMELYON16 were published without their annotation.
    doubtful = [pair for pair in pairs if pair.label is None and pair.name.casefold().startswith("tumor_")]
    if doubtful:
        named = name_some(pair.slide for pair in doubtful)
        warnings.append(f"left out, {len(doubtful)} slides with tumour but without a label: {named}")
        pairs = [pair for pair in pairs if pair not in doubtful]
    there = {path.stem for path in (options.root or options.train_tumor_wsi_path).rglob("*")}
    left_out = there - {pair.name for pair in pairs}
    if -1 not in options.proc_center:
        pairs = of_centers(pairs, options.proc_center)
        if not pairs:
            raise DataError(f"no slides of --proc_center {' '.join(map(str, options.proc_center))}")
    pairs.sort(key=lambda pair: (-pair.slide.stat().st_size, pair.name))
    return [SourceSlide(pair) for pair in pairs], left_out, warnings


def _of_root(root: Path, format: str) -> tuple[list[SlidePair], list[str]]:
    """Return pairs and warnings of CAMELYON17 if there are centres or patients, else CAMELYON16's training slides."""
    training = root / "training"
    if any(training.glob("center_*")) or (training / "patients").is_dir():
        return camelyon17(root, format, "xml", "normal")
    problems = []
    for label_format in ("xml", "tif"):
        try:
            return camelyon16(root, format, label_format, "skip")[0]
        except DataError as error:
            problems.append(str(error))
    raise DataError(f"{root} has neither CAMELYON17's layout nor CAMELYON16's: {'; '.join(problems)}")


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    show_warnings()
    try:
        return run(options, _ranks())
    except UserError as error:
        return report_user_error(error, PROGRAM)


def _ranks() -> Ranks:
    """Return the ranks of an MPI launcher, through Horovod."""
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
    mine = sources[world.rank :: world.size]
    pending = world.all_or_none(lambda: [source for source in mine if not store.is_finished(folders, source)])
    counts = world.gather(len(pending))
    if world.is_first:
        sys.stderr.write("".join(f"warning: {line}\n" for line in warnings))
        print(f"{len(sources)} slides, {len(sources) - sum(counts)} of them are finished already", flush=True)
    error, outcome, start = "", PatchOutcome(), time.monotonic()
    try:
        store.remove_slides(folders, {source.name for source in pending})
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
    return _finish(world, folders, outcome, error, time.monotonic() - start)


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
