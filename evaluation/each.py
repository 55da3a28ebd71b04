"""What holds for all evaluations: no slide is free of tumour for want of a name, and a failure is that of its slide.

The slides that fail are named at the end, are in the results as "failed", and make the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samplers.pairs.folders import left_out
from samplers.pairs.names import is_challenge_name, is_normal, is_tumour, name_some
from samplers.slides.errors import DataError
from utils.cli import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    UserError,
    non_negative_int,
    random_seed,
    show_warnings,
)
from utils.failures import failure_of


def refuse_unpaired(slides: Collection[str], truth: Collection[str], unlabelled: str) -> None:
    """Raise DataError if a slide would count as free of tumour only because no ground truth has its name.

    Free of tumour are `normal_*` slides, and CAMELYON16's `test_*` slides if all of the ground truth has such names;
    with `unlabelled` "normal" the others as well, unless there is ground truth of a name that no slide has.
    """
    lacking = [key for key in slides if key not in truth and not is_normal(key)]
    orphans = [key for key in truth if key not in slides]
    if all(map(is_challenge_name, orphans)):  # those are slides that were not predicted
        lacking = [
            key for key in lacking if is_tumour(key) or not (unlabelled == "normal" or is_challenge_name(key))
        ]
    if lacking:
        also = (
            f"; {len(orphans)} of the ground truth have no slide: {name_some(sorted(orphans))}"
            if orphans
            else ""
        )
        raise DataError(
            f"{len(lacking)} slides have no ground truth: {name_some(sorted(lacking))}{also}. Name the files as the "
            "slides are, or take slides that are free of tumour as such with --unlabelled normal"
        )


def pairs_of(
    predictions: dict[str, Path], truth: dict[str, Path], unlabelled: str
) -> tuple[dict[str, tuple[Path, Path | None]], list[str]]:
    """Return prediction and ground truth of each slide, and warnings. `unlabelled`: the option of train.py."""
    lacking = [key for key in predictions if key not in truth and not is_normal(key)]
    messages = []
    if unlabelled == "normal":
        refuse_unpaired(predictions, truth, unlabelled)
    if lacking and unlabelled != "normal":
        messages.append(f"{len(lacking)} predictions have no ground truth: {', '.join(lacking)}")
        if unlabelled == "error":
            raise DataError(messages[0])
    unpredicted = sorted(set(truth) - set(predictions))
    if unpredicted:
        messages.append(
            f"{len(unpredicted)} slides of the ground truth have no prediction: {', '.join(unpredicted)}"
        )
    left_out = set(lacking) if unlabelled == "skip" else set()
    pairs = {key: (path, truth.get(key)) for key, path in predictions.items() if key not in left_out}
    if not pairs:
        raise DataError("no prediction has a ground truth")
    return pairs, messages


def warn_of_others(folder: Path | None, found: Mapping[str, Path], suffixes: Iterable[str]) -> None:
    """Print a warning about files of a folder that are left out, and its subfolders that hold such files."""
    if folder is not None:
        wanted = tuple(suffixes)
        for line in left_out(folder, found.values(), wanted, f"{', '.join(wanted)} are read"):
            print(f"warning: {line}", file=sys.stderr)


@contextmanager
def spared(failed: dict[str, str], slide: str) -> Iterator[None]:
    """Note in `failed` why the work on a slide failed, whatever the error is, and go on with the next slide."""
    try:
        yield
    except DataError as error:
        failed[slide] = str(error)
    except Exception as error:
        failed[slide] = failure_of(error, f"evaluation of {slide}")


def refuse_nothing(done: Collection[object], failed: Mapping[str, str]) -> None:
    """Raise DataError if no slide is left."""
    if not done and failed:
        raise DataError(
            "\n".join(["no slide could be evaluated:", *(f"  {s}: {why}" for s, why in failed.items())])
        )


def report_failed(failed: Mapping[str, str]) -> int:
    """Print the slides that failed, and return the exit code."""
    for slide, reason in sorted(failed.items()):
        print(f"bad slide, left out: {slide}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} slides could not be evaluated, the results are of all others", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_DONE


def add_bootstrap_options(add: Callable[..., Any]) -> None:
    """Add --bootstrap and --seed to a parser or a group of it."""
    add(
        "--bootstrap",
        type=non_negative_int,
        default=1000,
        help="number of samples for the confidence intervals",
    )
    add("--seed", type=random_seed, default=0, help="random seed of the bootstrap")


def exit_code(program: str, run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Return what `run` returns, or print the user's error and return its exit code."""
    show_warnings()
    try:
        return run(options)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_USAGE
