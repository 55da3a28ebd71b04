"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_aside(path: Path, writer: Callable[[Path], Any]) -> None:
    """Under another name until it is whole; what a killed run leaves is written again by the next."""
    partial_path = path.with_name(f".{path.name}.partial")
    writer(partial_path)
    partial_path.replace(path)
