"""Files that are either whole or not there, and folders that hold the results of one set of options."""

from __future__ import annotations

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
    """Write under another name and rename when the file is whole.

    The next run overwrites what a killed run leaves behind.
    """
    partial_path = path.with_name(f".{path.name}.partial")
    writer(partial_path)
    partial_path.replace(path)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `--name was …, is …` for each option of `now` whose value was different before."""
    return [f"--{name} was {before.get(name)}, is {value}" for name, value in now.items()
            if before.get(name) != value]  # fmt: skip
