#!/usr/bin/env python3
"""Predict whole slides with a trained model: probability maps, outlines, lesions and scores.

    python predict.py --model_path logs/run --slide_path slides --output predictions
    mpirun -np 4 python predict.py ...       slides over ranks; ranks share a slide if there are fewer slides

Can be stopped at any moment and started again: finished slides are skipped. Exit codes: 0 done; 1 some slides
could not be used (all others are done), or files could not be written; 2 wrong options or unusable input.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from evaluation.lesions import MIN_DIAMETER_UM, THRESHOLD
from prediction import files
from prediction.model import Source, find_model, load_model
from prediction.slide import Plan, Settings, SlidePredictor
from samplers.dataset import files_of
from samplers.reader import BadSlideError
from samplers.slide import DataError
from utils.cli import (
    EXIT_DONE,
    EXIT_FAILED,
    NO_ROOM,
    Parser,
    UserError,
    fraction,
    positive_float,
    positive_int,
    report_user_error,
    show_warnings,
)
from utils.progress import SlideBar
from utils.ranks import Ranks

if TYPE_CHECKING:
    from utils.distributed import World

PROGRAM = "predict.py"
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Predict whole slides with a trained model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="log_dir of a run, checkpoint or exported model")
    add(
        "--slide_path",
        required=True,
        help="folder of slides, a slide, or a pattern such as 'slides/test_*.tif'",
    )
    add("--slide_format", default="tif", help="format (file ending) of the slides of a folder")
    add("--output", type=Path, default=Path("predictions"), help="folder for the results")
    add("--img_size", type=positive_int, help="of the patches in pixels (none: as in training)")
    add("--batch_size", type=positive_int, default=2, help="patches at a time")
    add("--overlap", type=fraction, default=0.25, help="part of a patch that its neighbour covers as well")
    add(
        "--resolution",
        type=positive_float,
        help="of the patches and the results in µm/px (none: as in training)",
    )
    add(
        "--tissue_only", action=argparse.BooleanOptionalAction, default=True,
        help="only patches that meet tissue, found as the surf sampler does",
    )  # fmt: skip
    add("--tta", action="store_true", help="mean over flips and quarter turns of each patch, 8 times as slow")
    add("--mixed_precision", choices=["float32", "float16", "bfloat16"],
        help="of the network (none: the exported model's)")  # fmt: skip
    add("--threshold", type=fraction, default=THRESHOLD,
        help="probability from which on a pixel is tumour; with more classes the most probable counts")  # fmt: skip
    add("--min_lesion_um", type=float, default=MIN_DIAMETER_UM,
        help="longest diameter in µm below which an area is no lesion")  # fmt: skip
    add("--no_cuda", action="store_true", help="do not use CUDA")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(argv)
    if not options.model_path.exists():
        parser.error(f"--model_path: there is no {options.model_path}")
    if options.overlap > 0.75:
        parser.error("--overlap: at most 0.75")
    if not 0 < options.threshold <= 1:
        parser.error("--threshold: more than 0 and at most 1")
    if options.min_lesion_um < 0:
        parser.error("--min_lesion_um: 0 or more")
    return options


def find_slides(slide_path: str, slide_format: str) -> list[Path]:
    """The slides, by name. DataError: there are none, or two have the same name."""
    path = Path(slide_path)
    if path.is_dir():
        found = files_of(path, slide_format)
    else:
        found = (
            [path] if path.is_file() else sorted(p for p in map(Path, glob.glob(slide_path)) if p.is_file())
        )
    if not found:
        raise DataError(f"--slide_path: no slides in {slide_path}")
    names = [slide.stem for slide in found]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DataError(f"--slide_path: slides of the same name: {', '.join(double)}")
    return found


def settings_of(options: argparse.Namespace, source: Source) -> Settings:
    return Settings(
        img_size=options.img_size or source.img_size,
        batch_size=options.batch_size,
        overlap=options.overlap,
        spacing=options.resolution or source.spacing,
        tissue_only=options.tissue_only,
        threshold=options.threshold,
        min_lesion_um=options.min_lesion_um,
        bb_downsample=int(source.options["bb_downsample"]),
        label_map=source.label_map,
    )


def noted(options: argparse.Namespace, source: Source, settings: Settings) -> dict[str, Any]:
    """What prediction.json holds: on what the files depend."""
    return {
        "model": source.identity(),
        "img_size": settings.img_size,
        "overlap": settings.overlap,
        "resolution": settings.spacing,
        "batch_size": settings.batch_size,
        "tissue_only": settings.tissue_only,
        "tta": options.tta,
        "mixed_precision": options.mixed_precision,
        "threshold": settings.threshold,
        "min_lesion_um": settings.min_lesion_um,
    }


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    show_warnings()
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")  # ranks that are done wait for the others
    if options.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        return run(options)
    except UserError as error:
        return report_user_error(error, PROGRAM)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: the same command goes on\n")
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    from utils.distributed import init_world, select_devices

    world: World = init_world(True)
    world.agree(lambda: select_devices(world, options.no_cuda))
    slides = world.of_first(lambda: find_slides(options.slide_path, options.slide_format))
    source = world.of_first(lambda: find_model(options.model_path, options.mixed_precision))
    settings = settings_of(options, source)
    world.of_first(lambda: files.prepare(options.output, noted(options, source, settings)))
    pending = world.of_first(
        lambda: [slide for slide in slides if not files.record_of(options.output, slide.stem).exists()]
    )
    if world.is_first:
        done = len(slides) - len(pending)
        print(f"{len(slides)} slides, {done} of them are finished already", flush=True)
    problems = Problems()
    if pending:
        predict, classes = world.agree(lambda: load_model(source, options.mixed_precision, options.tta))
        predictor = SlidePredictor(predict, classes, settings, options.output)
        problems = predict_slides(predictor, pending, world)
    return summarise(world, options.output, problems)


@dataclass
class Problems:
    """bad: slide → reason; error: why this rank ended, files could not be written."""

    bad: dict[str, str] = field(default_factory=dict)
    error: str = ""


def predict_slides(predictor: SlidePredictor, pending: list[Path], world: Ranks) -> Problems:
    """Collective if there are fewer slides than ranks: then all ranks share each slide, else each has its own."""
    if world.size > 1 and len(pending) < world.size:
        team: Ranks = world
    else:
        team, pending = Ranks(), pending[world.rank :: world.size]
    problems = Problems()
    with SlideBar("predicting", len(pending), world.is_first) as bar:
        for slide in pending:
            if not _predict(predictor, slide, team, problems, bar.advance):
                break
    return problems


def _predict(
    predictor: SlidePredictor,
    slide: Path,
    team: Ranks,
    problems: Problems,
    advance: Callable[[float, int], None],
) -> bool:
    """Collective in the team: one slide. Whether files can be written."""
    start, output = time.monotonic(), predictor.output

    def shared(function: Callable[[], Any]) -> Any:
        """What `function` returns; None if it failed on any rank, with the reason noted."""
        value, bad, error = None, "", ""
        try:
            value = function()
        except BadSlideError as failure:
            bad = failure.reason
        except OSError as failure:
            error = NO_ROOM.format(failure)
        reasons, errors = zip(*team.gather((bad, error)))
        if any(reasons):
            problems.bad[slide.stem] = next(filter(None, reasons))
        problems.error = problems.error or next(filter(None, errors), "")
        return None if any(reasons) or any(errors) else value

    def begin() -> Plan:
        plan = predictor.plan(slide)
        if team.is_first:
            files.remove_unfinished(output, slide.stem)
            for raw in files.raw_maps(output, slide.stem, plan.width, plan.height):
                raw.create()
        return plan

    plan = shared(begin)
    if plan is not None:

        def part() -> bool:
            predictor.run(
                slide, plan, team.rank, team.size,
                lambda patches: advance(patches * team.size / max(1, plan.patches), patches * team.size),
            )  # fmt: skip
            return True

        if shared(part):
            seconds = time.monotonic() - start
            shared(lambda: predictor.finish(slide, plan, seconds) if team.is_first else None)
    if (slide.stem in problems.bad or problems.error) and team.is_first:
        files.remove_unfinished(output, slide.stem)
    return not problems.error


def summarise(world: Ranks, output: Path, problems: Problems) -> int:
    """Collective: slides.csv and what went wrong, by rank 0."""
    found = world.gather(problems)
    bad = {slide: reason for part in found for slide, reason in part.bad.items()}
    errors = sorted({part.error for part in found if part.error})

    def tell() -> bool:
        for slide, reason in sorted(bad.items()):
            sys.stderr.write(f"bad slide, left out: {slide}: {reason}\n")
        if bad:
            sys.stderr.write(f"{len(bad)} slides could not be used, all others are done\n")
        try:
            rows = files.write_slides(output)
            print(f"{len(rows)} slides are predicted: {output / 'slides.csv'}", flush=True)
        except OSError as failure:
            errors.append(NO_ROOM.format(failure))
        for line in errors:
            sys.stderr.write(f"{PROGRAM}: error: {line}\n")
        return bool(bad or errors)

    return EXIT_FAILED if world.of_first(tell) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
