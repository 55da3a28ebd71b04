"""Checkpoints that are whole or not there: each is a folder that is renamed when it is whole, and checked when read.

<log_dir>/checkpoints/step_000005120/
    variables.index, variables.data-...   tf.train.Checkpoint: model and optimizer
    state.json                            step, next batch, metrics, size and CRC-32 of each file
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from utils.cli import RunError, UserError
from utils.files import write_atomically

VARIABLES = "variables"
STATE = "state.json"


class CheckpointError(UserError):
    """A checkpoint is torn, empty, or not of this suite."""


class CheckpointWriteError(RunError):
    """The last checkpoint of a run cannot be written."""


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


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:09d}"


def save_checkpoint(folder: Path, checkpoint: tf.train.Checkpoint, state: dict[str, Any]) -> Path:
    """Writes `<folder>/step_<state["step"]>`: under another name, then renamed. Rank 0 alone calls it.

    Raises OSError (a full disk); what was there before stays.
    """
    target = checkpoint_path(folder, state["step"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(target, lambda partial: _write(partial, checkpoint, state))
        _sync(folder)
    except tf.errors.OpError as error:
        raise OSError(f"{target} cannot be written: {error.message}") from error
    return target


def _write(folder: Path, checkpoint: tf.train.Checkpoint, state: dict[str, Any]) -> None:
    folder.mkdir()
    checkpoint.write(str(folder / VARIABLES))
    files = {p.name: [p.stat().st_size, _crc32(p)] for p in sorted(folder.iterdir()) if p.is_file()}
    (folder / STATE).write_text(json.dumps({**state, "files": files}, indent=2))
    for path in folder.iterdir():
        _sync(path)


def amend_state(path: Path, values: dict[str, Any]) -> None:
    """Change values in the state of the checkpoint at `path`, whose variables stay. OSError: it cannot be written."""
    text = json.dumps({**json.loads((path / STATE).read_text()), **values}, indent=2)

    def write(partial: Path) -> None:
        partial.write_text(text)
        _sync(partial)

    write_atomically(path / STATE, write)
    _sync(path)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of the checkpoint at `path`. CheckpointError if it is torn or foreign."""
    try:
        state = json.loads((path / STATE).read_text())
        files = state["files"]
        there = {file.name for file in path.glob(f"{VARIABLES}.*")} | {f"{VARIABLES}.index"}
        if other := sorted(there ^ set(files)):
            raise CheckpointError(
                f"{path}: the folder and its {STATE} do not hold the same files: {', '.join(other)}"
            )
        for name, (size, crc) in files.items():
            if (path / name).stat().st_size != size or _crc32(path / name) != crc:
                raise CheckpointError(f"{path}: {name} is not what was written")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error!r}") from error
    return state


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and a line for each newer one that is not whole."""
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
    """Load every variable from `path` and return its state. CheckpointError if model or optimizer differ."""
    state = read_state(path)
    try:
        checkpoint.read(str(path / VARIABLES)).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{path} is of another model or optimizer: {error}") from error
    return state


def prune_checkpoints(folder: Path, newest: int, keep: int, best_step: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best. OSError: one cannot be deleted.

    The newest is that of step `newest`. Later ones do not count: they are torn, so the run went on from before them.
    """
    paths = [path for path in sorted(folder.glob("step_*")) if path <= checkpoint_path(folder, newest)]
    for path in paths[: max(0, len(paths) - keep)]:
        if path != checkpoint_path(folder, best_step or -1):
            shutil.rmtree(path)


@dataclass
class Checkpointer:
    """Writes the checkpoints of a run into `folder`, and keeps the newest `keep` of them and the best."""

    folder: Path
    variables: tf.train.Checkpoint
    keep: int
    warn: Callable[[str], None]
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while a checkpoint is written
    best: int | None = None  # step of the best one that is there

    def save(self, state: dict[str, Any], must: bool) -> None:
        """Write a checkpoint. Rank 0 alone calls it.

        `state` has at least `step` and `best` (mIoU, step). If it cannot be written (a full disk), the run goes on
        with a warning; CheckpointWriteError if it `must` be written because the run ends here.
        """
        try:
            with self.lock:
                save_checkpoint(self.folder, self.variables, state)
        except OSError as error:
            message = f"no checkpoint at step {state['step']}"
            if must:
                raise CheckpointWriteError(
                    f"{message}: {error}. Make room and start again: the run goes on from the last one in {self.folder}"
                ) from error
            self.warn(f"warning: {message}, the run goes on: {error}")
        else:
            self._prune(state["step"], state["best"][1])

    def add_score(self, step: int, values: dict[str, Any]) -> None:
        """Add the score of the validation to the checkpoint of its step, and keep the best. Rank 0 alone calls it.

        `values` change the checkpoint's state; `best` is among them. A warning if they cannot be written: a run that
        goes on from there validates again. Without a checkpoint of this step, of which there was a warning, nothing.
        """
        path = checkpoint_path(self.folder, step)
        if not path.exists():
            return
        try:
            amend_state(path, values)
        except OSError as error:
            self.warn(f"warning: the score of step {step} is not in its checkpoint, the run goes on: {error}")
        else:
            self._prune(step, values["best"][1])

    def _prune(self, newest: int, best: int) -> None:
        """Delete old checkpoints. A best one that could not be written does not cost the best one that is there."""
        if checkpoint_path(self.folder, best).exists():
            self.best = best
        try:
            prune_checkpoints(self.folder, newest, self.keep, self.best)
        except OSError as error:
            self.warn(f"warning: an old checkpoint cannot be deleted, the run goes on: {error}")
