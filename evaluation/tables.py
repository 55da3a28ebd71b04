"""Reads the challenges' CSV files. A DataError names the file and the line that is wrong."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from evaluation.froc import Detection
from samplers.pairs.names import slide_key
from samplers.slides.errors import DataError

SLIDE_SUFFIXES = (".tif", ".tiff", ".svs", ".mrxs", ".ndpi", ".scn", ".bif", ".vms", ".dcm", ".zarr")

CsvRow = tuple[int, list[str]]  # line number, stripped cells


def read_detections(path: Path) -> list[Detection]:
    """Read the rows `confidence,X,Y` of a CSV, with or without that header."""
    rows = read_rows(path)
    if rows and [cell.casefold() for cell in rows[0][1]] == ["confidence", "x", "y"]:
        rows = rows[1:]
    found = []
    for number, cells in rows:
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            values = []
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise DataError(f"{path}, line {number}: {','.join(cells)!r} is not confidence,X,Y")
        found.append(Detection(*values))
    return found


def read_slide_scores(path: Path) -> dict[str, float]:
    """Read the probability of each slide from a CSV `image,probability`, or `slide,probability,…` of predict.py."""
    rows = read_rows(path)
    header = [cell.casefold() for cell in rows[0][1]] if rows else []
    name, value = 0, 1
    if "probability" in header:
        name, value = (
            next((header.index(h) for h in ("image", "slide") if h in header), 0),
            header.index("probability"),
        )
        rows = rows[1:]
    scores: dict[str, float] = {}
    for number, cells in rows:
        try:
            key, score = slide_key(slide_stem(cells[name])), float(cells[value])
        except (IndexError, ValueError):
            key, score = "", math.nan
        if not key or not math.isfinite(score):
            raise DataError(f"{path}, line {number}: {','.join(cells)!r} is not image,probability")
        if key in scores:
            raise DataError(f"{path}, line {number}: {cells[name]} is there twice")
        scores[key] = score
    if not scores:
        raise DataError(f"{path}: no slides in it")
    return scores


def read_rows(path: Path) -> list[CsvRow]:
    """Return the lines of a CSV that are not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1)
            ]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [(number, cells) for number, cells in lines if any(cells)]


def slide_stem(name: str) -> str:
    """Return a name without the suffix of a slide. Other suffixes stay: `a.b` is a name."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SLIDE_SUFFIXES else name
