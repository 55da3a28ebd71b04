#!/usr/bin/env python3
"""Predicts whole slides with a trained model: probability maps, lesions, outlines for ASAP and QuPath, tables.

    sh run_predict.sh --model_path logs/run --slide_path slides --output predictions
    python predict.py --model_path logs/run/model --slide_path 'slides/test_*.tif' --output predictions
    mpirun -np 4 python predict.py ...        each rank takes slides, or parts of them if there are fewer slides

It can be stopped at any moment and run again. Exit codes: 0 done; 1 some slides could not be used (all others are
done), files could not be written, or memory was short; 2 wrong options or unusable input; 130 Ctrl-C.
"""

from __future__ import annotations

from utils.interrupt import end_quietly

if __name__ == "__main__":  # first, as what follows takes seconds to import
    end_quietly()

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.lesions import MIN_DIAMETER_UM, THRESHOLD
from models.catalog import MODELS, multiple_of
from models.from_options import PRECISIONS
from prediction import store
from prediction.ensemble import Ensemble, ModelSources, find_models, load_models
from prediction.find import find_slides
from prediction.model import ModelSource, Predictor
from prediction.store import PredictionSettings
from prediction.summary import summarise
from prediction.work import PredictionOutcome, Worker
from utils.cli import (
    HelpFormatter,
    Parser,
    UserError,
    fraction,
    positive_float,
    positive_int,
    report_user_error,
    show_warnings,
)
from utils.failures import write_failures_to
from utils.lock import lock_folder
from utils.ranks import killed_rank
from utils.ranks.launcher import launcher_rank
from utils.ranks.single import Ranks
from utils.reporting.progress_bar import SlideBar
from utils.startup import configure_environment, import_tensorflow

if TYPE_CHECKING:
    from utils.ranks.world import World

PROGRAM = "predict.py"
Work = Callable[[argparse.Namespace, "ModelSource | ModelSources", list[Path]], int]
OUT_OF_MEMORY = (
    "out of memory with --batch_size {0.batch_size} and --img_size {0.img_size}. A smaller --batch_size gives the same "
    "result, so the same command goes on with it; a smaller --img_size needs another --output"
)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Predict whole slides: probability maps, lesions and outlines.",
        formatter_class=HelpFormatter,
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options, which `evaluation.audit` has as well."""
    add = parser.add_argument_group("input and output").add_argument
    add(
        "--model_path",
        type=Path,
        nargs="+",
        required=True,
        help="log_dir of a training run, a checkpoint, or an exported model; of several models, or a pattern, the mean "
        "is taken, and it is written where they disagree",
    )
    add(
        "--trust_weights",
        action="store_true",
        help="load an exported model even if its graph can write files or run code: give it if you know who made it",
    )
    add(
        "--slide_path",
        nargs="+",
        required=True,
        help="folders, files or patterns of slides; "
        "or the splits.json of a training run, for the slides that it was validated on",
    )
    add("--output", type=Path, required=True, help="folder for the results")
    add = parser.add_argument_group("prediction").add_argument
    add("--img_size", type=positive_int, help="side of a patch in pixels (default: that of the training)")
    overlap = "share of a patch that the next one covers as well"
    add("--overlap", type=fraction, default=store.OVERLAP, help=overlap)
    add("--batch_size", type=positive_int, default=2, help="number of patches that are predicted at once")
    add(
        "--resolution",
        type=positive_float,
        help="spacing of the result in µm/px (default: that of the training, or else of level 0)",
    )
    add(
        "--tissue_only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out glass, where the probability is then 0",
    )
    add("--tta", action="store_true", help="average over the eight flips and quarter turns of each patch")
    add(
        "--mixed_precision",
        choices=PRECISIONS,
        help="number format that the network computes in (default: that of the training)",
    )
    add = parser.add_argument_group("lesions").add_argument
    add(
        "--threshold",
        type=fraction,
        help=f"probability from which on a pixel is tumour, for models with two classes (default: {THRESHOLD})",
    )
    add(
        "--min_lesion_mm",
        type=positive_float,
        default=MIN_DIAMETER_UM / 1000,
        help="longest diameter in mm that a lesion must have; smaller ones are no tumour",
    )
    add = parser.add_argument_group("run").add_argument
    add("--no_cuda", action="store_true", help="do not use GPUs")
    add("--verbose", action="store_true", help="show TensorFlow's own messages")


def parse_options(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> tuple[argparse.Namespace, ModelSource | ModelSources, list[Path]]:
    """Return the options, the model and the slides, or exit with code 2 if one is wrong. Needs no TensorFlow."""
    parser = parser or build_parser()
    options = parser.parse_args(argv)
    if options.overlap > 0.9:
        parser.error(
            f"--overlap {options.overlap} is more than 0.9: each pixel would be predicted a hundred times"
        )
    try:
        given = {name for name in ("img_size", "resolution") if getattr(options, name) is not None}
        source = find_models(options.model_path, options.mixed_precision, given)
        slides, warnings = find_slides(options.slide_path)
    except UserError as error:
        parser.error(str(error))
    options.img_size = options.img_size or source.options.get("img_size", 1024)
    name = source.options.get("model")
    if name in MODELS and options.img_size % multiple_of(name):
        parser.error(
            f"--img_size {options.img_size} is not a multiple of {multiple_of(name)}, which {name} needs"
        )
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output {options.output} is a file")
    if launcher_rank()[0] == 0:
        sys.stderr.write("".join(f"warning: {line}\n" for line in warnings))
    return options, source, slides


def settings_of(options: argparse.Namespace, source: ModelSource | ModelSources) -> PredictionSettings:
    """Return the settings of the options, else those of the training. UserError: the model cannot be read."""
    trained = source.options
    return PredictionSettings(
        model=source.identity(),
        img_size=options.img_size,
        overlap=options.overlap,
        batch_size=options.batch_size,
        resolution=options.resolution or trained.get("resolution"),
        tissue_only=options.tissue_only,
        bb_downsample=trained.get("bb_downsample", 7),
        tta=options.tta,
        mixed_precision=options.mixed_precision or trained.get("mixed_precision"),
        threshold=THRESHOLD if options.threshold is None else options.threshold,
        min_lesion_mm=options.min_lesion_mm,
    )


def main(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None, work: Work | None = None
) -> int:
    """Run the program; another one of its kind gives its own parser, and what is to be done with the slides."""
    options, source, slides = parse_options(argv, parser)
    show_warnings()
    configure_environment(options)
    os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")  # ranks that are done wait for the others
    try:
        return (work or run)(options, source, slides)
    except UserError as error:
        return report_user_error(error, parser.prog if parser else PROGRAM)
    except Exception as error:
        killed_rank.end_at_once(killed_rank.text_of(error, OUT_OF_MEMORY.format(options)))


def run(options: argparse.Namespace, source: ModelSource | ModelSources, slides: list[Path]) -> int:
    """Predict the slides and return the exit code. Collective."""
    return predict_slides(options, source, slides, start_ranks(options))


def start_ranks(options: argparse.Namespace) -> World:
    """Start TensorFlow and Horovod, and return the ranks. Collective."""
    import_tensorflow(options.verbose)
    from utils.ranks.devices import devices_of_rank
    from utils.ranks.world import init_world

    world = init_world(True)
    devices_of_rank(world, options.no_cuda)
    return world


def predict_slides(
    options: argparse.Namespace, source: ModelSource | ModelSources, slides: Sequence[Path], world: World
) -> int:
    """Predict the slides into --output and return the exit code. Collective."""
    # 1. Slides that are not finished yet.
    settings = world.on_rank_0(lambda: settings_of(options, source))
    world.on_rank_0(lambda: lock_folder(options.output, "--output"))
    world.on_rank_0(lambda: store.prepare(options.output, settings))
    write_failures_to(options.output)
    pending = world.on_rank_0(
        lambda: [path for path in slides if not store.is_finished(options.output, path)]
    )
    if world.is_first:
        print(f"{len(slides)} slides, {len(slides) - len(pending)} of them are finished already", flush=True)

    # 2. The model.
    outcome, start = PredictionOutcome(), time.monotonic()
    if pending:
        predictor = world.all_or_none(
            lambda: load_models(
                source, options.mixed_precision, settings.img_size, settings.tta, options.trust_weights
            )
        )
        several = predictor.classes > 2
        if several and options.threshold is not None:
            raise UserError(
                f"--threshold is for two classes, but the model has {predictor.classes}, of which a pixel gets the "
                "most probable one"
            )
        names = outline_names(source, predictor.classes)

        # 3. Slide after slide.
        start = time.monotonic()
        outcome = predict(options, settings, predictor, names, pending, world)

    # 4. The table and the summary.
    return summarise(PROGRAM, options.output, world, outcome, time.monotonic() - start)


def outline_names(source: ModelSource | ModelSources, classes: int) -> list[str]:
    """Return the name of each class from 1 on: the first group of the label map that gave it."""
    return [names[0] for names in source.class_names(classes)[1:]]


def predict(
    options: argparse.Namespace,
    settings: PredictionSettings,
    predictor: Predictor | Ensemble,
    names: list[str],
    pending: list[Path],
    world: World,
) -> PredictionOutcome:
    """Divide the slides over the ranks, or each slide if there are fewer slides than ranks. Collective."""
    shared = len(pending) < world.size
    mine = pending if shared else pending[world.rank :: world.size]
    team = world if shared else Ranks()
    with SlideBar("predicting", len(mine), world.is_first) as bar:
        return Worker(options.output, settings, predictor, names, team, bar.advance).run(mine)


if __name__ == "__main__":
    sys.exit(main())
