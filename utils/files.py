"""Files that are whole or not there, and folders that hold results of one set of options."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class OutputError(OSError):
    """A file cannot be written: nothing is wrong with the slide."""


def write_atomically(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let `writer` write a file or a folder under another name, and give it the name `path` when it is whole.

    What a killed run leaves under the other name is written again by the next one. A folder at `path` is replaced.
    """
    partial_path = path.with_name(f".{path.name}.partial")
    _remove(partial_path)
    writer(partial_path)
    if path.is_dir():
        _remove(path)
    partial_path.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`--name was …, is …` of each option of `now` that was another one before."""
    return [f"--{name} was {before.get(name)}, is {value}" for name, value in now.items()
            if before.get(name) != value]  # fmt: skip
