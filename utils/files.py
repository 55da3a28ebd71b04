"""Files that are whole or not there, and folders that hold results of one set of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class OutputError(OSError):
    """A file cannot be written: nothing is wrong with the slide."""


def write_atomically(path: Path, writer: Callable[[Path], Any]) -> None:
    """Under another name until it is whole; what a killed run leaves is written again by the next."""
    partial_path = path.with_name(f".{path.name}.partial")
    writer(partial_path)
    partial_path.replace(path)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`--name was …, is …` of each option of `now` that was another one before."""
    return [f"--{name} was {before.get(name)}, is {value}" for name, value in now.items()
            if before.get(name) != value]  # fmt: skip
