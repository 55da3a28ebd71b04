"""The files: patches and masks, a record for each finished slide, patches.csv; and what a killed run has left.

    <positive>/tumor_center_<c>_<slide>_<x>_<y>.png, mask_<same>.png, patches.csv
    <positive>/preprocessing.json     the settings
    <positive>/slides/<slide>.json    the record of a finished slide, <slide>.png its picture
    <negative>/…                      patches, masks and patches.csv

Each file is written under another name and renamed; a slide without a record is done again.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyvips

from CAMELYON17_PREPROCESSING.settings import COLUMNS, Folders, PatchRow, PatchSettings, SourceSlide
from samplers.pairs.pairing import slide_of_patch
from samplers.slides.errors import DataError
from utils.cli import UserError
from utils.files import OutputError, differences

KINDS = ("positive", "negative")


def write(path: Path, content: bytes) -> None:
    """Write a file under another name until it is whole. OutputError if it cannot be written."""
    partial = path.with_name(f".{os.getpid()}.{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error}") from error


def encode(pixels: np.ndarray, format: str, spacing: float) -> bytes:
    """uint8 RGB (h, w, 3) as PNG or JPEG, with its spacing in µm/px.

    Level 2 with row differences takes 67 ms for 1024² and 1.8 MB, OpenCV 113 ms at its fastest for 1.7 MB.
    """
    image = pyvips.Image.new_from_array(pixels).copy(xres=1000 / spacing, yres=1000 / spacing)
    if format == "jpg":
        return bytes(image.jpegsave_buffer(Q=90))
    return bytes(image.pngsave_buffer(compression=2, filter="up"))


def encode_mask(mask: np.ndarray) -> bytes:
    """uint8 (h, w) as PNG. Few values: OpenCV's call takes a third of libvips'."""
    return cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


@functools.lru_cache
def _empty_mask(height: int, width: int) -> bytes:
    """Return the mask of negatives, which are most patches."""
    return encode_mask(np.zeros((height, width), np.uint8))


def save_patch(
    folder: Path, name: str, image: np.ndarray, mask: np.ndarray, format: str, spacing: float
) -> None:
    """Save a patch and its mask (PNG, 0 and 255), the mask first, so that a patch that is there has one."""
    content = encode_mask(mask) if mask.any() else _empty_mask(*mask.shape)
    write(folder / f"mask_{name}.png", content)
    write(folder / f"{name}.{format}", encode(image, format, spacing))


def prepare(folders: Folders, settings: PatchSettings) -> None:
    """Makes the folders and notes the settings; ValueError: the folder has patches of other settings."""
    note = folders.positive / "preprocessing.json"
    for folder in {folders.negative, folders.positive / "slides"}:
        folder.mkdir(parents=True, exist_ok=True)
    values = settings.values()
    if settings.save_neg:
        positive, negative = (folder.resolve() for folder in folders)
        values["save_tumor_negative_path"] = os.path.relpath(negative, positive)
    if note.exists() and any((folders.positive / "slides").glob("*.json")):
        try:
            before = dict(json.loads(note.read_text()))
        except (OSError, ValueError) as error:
            raise DataError(f"{note} cannot be read: {error}") from error
        changed = differences(before, values)
        if changed:
            raise UserError(
                f"{folders.positive} holds patches of other options: {', '.join(changed)}. Remove it, or "
                "name others with --save_positive_path and --save_tumor_negative_path"
            )
    write(note, (json.dumps(values, indent=2) + "\n").encode())


def record_of(folders: Folders, slide: str) -> Path:
    return folders.positive / "slides" / f"{slide}.json"


def read_record(path: Path) -> dict[str, Any]:
    """DataError if it cannot be read: it was not written by this program."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {**record, **{kind: [PatchRow(*row) for row in record[kind]] for kind in KINDS}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}): remove it and the slide is done again"
        ) from error


def write_record(
    folders: Folders, source: SourceSlide, rows: dict[str, list[PatchRow]], discarded: dict[str, int]
) -> None:
    """Write the record of a slide, which is finished from here on."""
    kinds = {kind: [list(asdict(row).values()) for row in rows[kind]] for kind in KINDS}
    record = {"slide": source.name, "label": source.label, "discarded": discarded, **kinds}
    write(record_of(folders, source.name), (json.dumps(record) + "\n").encode())


def is_finished(folders: Folders, source: SourceSlide) -> bool:
    """Return whether a slide's patches are there, cut with the label that it has now."""
    path = record_of(folders, source.name)
    return path.exists() and read_record(path).get("label") == source.label


def finished_slides(folders: Folders) -> set[str]:
    return {path.stem for path in (folders.positive / "slides").glob("*.json")}


def remove_slides(folders: Folders, names: Collection[str]) -> int:
    """Takes away what there is of these slides, their records first; how many files."""
    removed = 0
    if not names:
        return removed
    for name in names:
        for path in (record_of(folders, name), record_of(folders, name).with_suffix(".png")):
            if path.exists():
                path.unlink()
                removed += 1
    for folder in {*folders, folders.positive / "slides"}:
        for entry in os.scandir(folder):
            stem, suffix = os.path.splitext(entry.name)
            slide = slide_of_patch(stem.removeprefix("mask_"))
            if suffix == ".partial":
                inner = re.sub(r"^\.\d+\.|\.(png|jpg|json|csv)$", "", stem)
                slide = slide_of_patch(inner.removeprefix("mask_")) or inner
            if slide in names:
                os.unlink(entry.path)
                removed += 1
    return removed


def write_tables(folders: Folders) -> dict[str, int]:
    """patches.csv in both folders, of all finished slides; how many patches of each kind there are."""
    rows: dict[Path, list[PatchRow]] = {folder: [] for folder in folders}
    counts = dict.fromkeys(KINDS, 0)
    for slide in sorted(finished_slides(folders)):
        record = read_record(record_of(folders, slide))
        for kind, folder in zip(KINDS, folders):
            rows[folder] += record[kind]
            counts[kind] += len(record[kind])
    for folder, found in rows.items():
        write(folder / "patches.csv", _table(sorted(found, key=lambda row: (row.slide, row.y, row.x))))
    return counts


def _table(rows: Sequence[PatchRow]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(asdict(row).values() for row in rows)
    return text.getvalue().encode()
