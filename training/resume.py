"""Finds the checkpoint that a run goes on from, and checks that the options are those that it began with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from training.options import option_values
from utils.cli import UserError
from utils.files import write_atomically

SPLITS = "splits.json"
# These may change on resume without a warning: they affect logging, not learning.
FREE = {
    *("log_dir", "resume", "resume_force", "weights_path", "verbose", "no_cuda", "sample_processes"),
    *(
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "time_limit",
        "stall_limit",
        "validate_slides_minutes",
        "histograms",
        "profile",
    ),
    *("tracker", "tracker_uri", "track_model"),
    *("recompute", "ranks_per_patch", "memory_report", "jit"),
}


def find_checkpoint(options: argparse.Namespace) -> Path | None:
    """Return the newest whole checkpoint of the run in `log_dir`, or None if the run begins. Rank 0 alone calls it.

    UserError: the run there has other options, or `--resume` was given without a `--log_dir`.
    """
    from training.checkpoint import latest_checkpoint

    log_dir: Path | None = options.log_dir
    if log_dir is None:
        if options.resume:
            raise UserError("--resume needs the --log_dir of the run to go on with")
        return None
    if options.debug:  # it begins anew
        return None
    if not (log_dir / "options.json").exists():
        if (log_dir / "metrics.jsonl").exists():
            raise UserError(f"--log_dir {log_dir} holds a run without options.json: name another one")
        if options.resume:
            sys.stderr.write(f"{log_dir} holds no run yet: it begins\n")
        return None
    _check_options(options, log_dir)
    path, bad = latest_checkpoint(log_dir / "checkpoints")
    for line in bad:
        sys.stderr.write(f"warning: not used: {line}\n")
    if path is None:
        sys.stderr.write(f"{log_dir} holds a run without a whole checkpoint: it begins again\n")
    return path


def options_of_run(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the run that these options go on with began with, {} if it begins. UserError: it cannot be read."""
    return {} if options.log_dir is None or options.debug else read_options(options.log_dir)


def read_options(log_dir: Path) -> dict[str, Any]:
    """Return the options of the training run in `log_dir`, or {} if it holds none. UserError: they cannot be read."""
    path = log_dir / "options.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _check_options(options: argparse.Namespace, log_dir: Path) -> None:
    before, now = options_of_run(options), option_values(options)
    lines = [
        f"  --{name} was {before[name]}, is {now[name]}"
        for name in now
        if name in before and before[name] != now[name] and name not in FREE
    ]
    if not lines:
        return
    message = f"the run in {log_dir} has other options:\n" + "\n".join(lines)
    if not options.resume_force:
        raise UserError(
            f"{message}\ngive the same ones, name another --log_dir, or go on all the same with --resume_force"
        )
    sys.stderr.write(f"warning: {message}\n")


def learning_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that change what is learnt: neither FREE ones nor paths."""
    return {k: v for k, v in option_values(options).items() if k not in FREE and not k.endswith("_path")}


def read_splits(log_dir: Path) -> dict[str, list[str]]:
    """{"train": slides, "val": slides} as the run began. UserError if it cannot be read."""
    path = log_dir / SPLITS
    try:
        return {name: [row["slide"] for row in rows] for name, rows in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error


def read_metrics(log_dir: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl, in their order, without one that is not written to its end."""
    whole, _, _ = (log_dir / "metrics.jsonl").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def drop_later_metrics(path: Path, step: int, due: Collection[str] = ()) -> None:
    """Take the lines of steps after `step` off metrics.jsonl, since they come again, and a torn last line as well.

    `due`: the splits whose validation of `step` comes again too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        again = row["step"] == step and row["split"] in due
        if row["step"] <= step and not again:
            kept.append(line + "\n")
    write_atomically(path, lambda aside: aside.write_text("".join(kept)))
