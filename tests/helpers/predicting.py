"""Starts predict.py in this process, and reads what it wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import tifffile

COMMON = ("--img_size", "128", "--batch_size", "3")


FEW = ("--threshold", "0.99")  # with the default, noise would have endless ragged outlines


def words(model: Path, where: Path, out: Path, *more: str) -> list[str]:
    given = [] if "--img_size" in more else COMMON
    return ["--model_path", str(model), "--slide_path", str(where), "--output", str(out), *given, *more]


def pixels(out: Path, slide: str, kind: str = "probability") -> np.ndarray:
    return tifffile.TiffFile(out / f"{slide}_{kind}.tif").pages[0].asarray()


def record(out: Path, slide: str) -> dict:
    return json.loads((out / "slides" / f"{slide}.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    """Return {file: digest of its content}, without where and when the slides lay and how long they took."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        content = path.read_bytes()
        if path.suffix == ".json" and path.parent.name == "slides":
            content = json.dumps({**json.loads(content), "seconds": 0, "path": "", "state": []}).encode()
        if path.name == "slides.csv":
            content = b"\n".join(line.rpartition(b",")[0] for line in content.splitlines())
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found
