"""Arguments of the preprocessing, and what it wrote."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

ARGUMENTS = ["--patch_size", "128", "--save_neg", "--save_png", "--num_threads", "2", "--layout", "flat"]


def words(root: Path, out: Path, *more: str) -> list[str]:
    return ["--root", str(root), "--save_positive_path", str(out / "positive"), *ARGUMENTS, *more]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "patches.csv").open() as file:
        return list(csv.DictReader(file))
