"""Checkpoints that are whole or not there: one folder each, written aside and renamed, checked when read.

<log_dir>/checkpoints/step_000005120/
    variables.index, variables.data-...   tf.train.Checkpoint: model and optimizer
    state.json                            step, next batch, metrics, size and CRC-32 of each file
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import tensorflow as tf

VARIABLES = "variables"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is torn, empty, or not of this suite."""


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(folder: Path, checkpoint: tf.train.Checkpoint, state: dict[str, Any]) -> Path:
    """Writes `<folder>/step_<state["step"]>`: under another name, then renamed. Rank 0 alone calls it.

    Raises OSError (a full disk); what was there before stays.
    """
    target = folder / f"step_{state['step']:09d}"
    temporary = folder / f"tmp_{state['step']:09d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        checkpoint.write(str(temporary / VARIABLES))
        files = {p.name: [p.stat().st_size, _crc32(p)] for p in sorted(temporary.iterdir()) if p.is_file()}
        (temporary / STATE).write_text(json.dumps({**state, "files": files}, indent=2))
        for path in temporary.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _sync(folder)
    except tf.errors.OpError as error:
        raise OSError(f"{target} cannot be written: {error.message}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def read_state(path: Path) -> dict[str, Any]:
    """The state of the checkpoint at `path`; CheckpointError if it is torn or foreign."""
    try:
        state = json.loads((path / STATE).read_text())
        files = state["files"]
        for name, (size, crc) in files.items():
            if (path / name).stat().st_size != size or _crc32(path / name) != crc:
                raise CheckpointError(f"{path}: {name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error!r}") from error
    return state


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that is not."""
    bad: list[str] = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            read_state(path)
        except CheckpointError as error:
            bad.append(str(error))
        else:
            return path, bad
    return None, bad


def restore_checkpoint(path: Path, checkpoint: tf.train.Checkpoint) -> dict[str, Any]:
    """Every variable from `path` and its state. CheckpointError if the model or optimizer is another one."""
    state = read_state(path)
    try:
        checkpoint.read(str(path / VARIABLES)).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{path} is of another model or optimizer: {error}") from error
    return state


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Deletes all but the newest `keep` and the best."""
    paths = sorted(folder.glob("step_*"))
    for path in paths[: max(0, len(paths) - keep)]:
        if path.name != f"step_{best_step or -1:09d}":
            shutil.rmtree(path)
