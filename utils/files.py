"""Files that are either whole or not there, and folders that hold the results of one set of options."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.cli import UserError


class OutputError(UserError):
    """A file or folder cannot be written, for example because the disk is full. Nothing is wrong with the input."""


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise an OutputError that names `path` in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def write_atomically(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let `writer` write a file or a folder under another name, and give it the name `path` when it is whole.

    What a killed run leaves under the other name is written again by the next one. A folder at `path` is replaced.
    If the writer fails, what it has written is removed: a full disk would stay full otherwise.
    """
    partial_path = path.with_name(f".{path.name}.partial")
    remove_path(partial_path)
    try:
        writer(partial_path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_path(partial_path)
        raise
    if path.is_dir():
        remove_path(path)
    partial_path.replace(path)


def remove_path(path: Path) -> None:
    """Remove a file, which may be gone, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `--name was …, is …` for each option of `now` whose value was different before."""
    return [f"--{name} was {before.get(name)}, is {value}" for name, value in now.items()
            if before.get(name) != value]  # fmt: skip
