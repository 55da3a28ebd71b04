"""Writes patches, masks, a record of each finished slide and patches.csv; removes what a killed run has left.

    <positive>/patches/<slide>/tumor_center_<c>_<slide>_<x>_<y>.png, mask_<same>.png; with --layout flat <positive>/…
    <positive>/patches.csv
    <positive>/preprocessing.json     the settings
    <positive>/slides/<slide>.json    the record of a finished slide; <slide>.png is its picture, <slide>.begun says
                                      of what the patches of an unfinished slide are
    <negative>/…                      patches, masks and patches.csv

Each file is written under another name and then renamed. A slide without a record goes on with the patches that are
there, if the slide, its label and the settings are those with which it was begun, and is cut again otherwise.
"""

from __future__ import annotations

import contextlib
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

from CAMELYON17_PREPROCESSING.settings import COLUMNS, LAYOUTS, Folders, PatchRow, PatchSettings, SourceSlide
from samplers.pairs.names import slide_of_patch
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import size_of, state_of
from utils.cli import UserError
from utils.files import differences, output_errors, remove_path, write_atomically

KINDS = ("positive", "negative")
NOTE = "preprocessing.json"


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there. OutputError: it cannot be written."""
    with output_errors(path):
        write_atomically(path, lambda partial: partial.write_bytes(content))


def encode(pixels: np.ndarray, format: str, spacing: float) -> bytes:
    """Return uint8 RGB (h, w, 3) as a PNG or JPEG file that states its spacing in µm/px.

    A PNG of 1024² takes 67 ms and 1.8 MB (compression level 2 with row differences). OpenCV's fastest takes 113 ms
    and 1.7 MB.
    """
    image = pyvips.Image.new_from_array(pixels).copy(xres=1000 / spacing, yres=1000 / spacing)
    if format == "jpg":
        return bytes(image.jpegsave_buffer(Q=90))
    return bytes(image.pngsave_buffer(compression=2, filter="up"))


def encode_mask(mask: np.ndarray) -> bytes:
    """Return uint8 (h, w) as a PNG file. With so few values OpenCV takes a third of libvips' time."""
    return cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


@functools.lru_cache
def _empty_mask(height: int, width: int) -> bytes:
    """Return the mask file of a negative, which is made once since most patches are negatives."""
    return encode_mask(np.zeros((height, width), np.uint8))


def is_saved(folder: Path, name: str, format: str) -> bool:
    """Return whether a patch is there, and so its mask. A node that died may have left a file of no bytes."""
    return size_of(folder / f"{name}.{format}") > 0 and size_of(folder / f"mask_{name}.png") > 0


def save_patch(
    folder: Path, name: str, image: np.ndarray, mask: np.ndarray, format: str, spacing: float
) -> None:
    """Save a patch and its mask (PNG, uint8), the mask first, so that a patch that is there has one.

    Makes the folder if it is not there.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = encode_mask(mask) if mask.any() else _empty_mask(*mask.shape)
    write(folder / f"mask_{name}.png", content)
    write(folder / f"{name}.{format}", encode(image, format, spacing))


def layout_of(folder: Path) -> str:
    """Return the layout of a folder of positive patches, "slide" for a new one. DataError: its note cannot be read."""
    note = folder / NOTE
    return str(_read_note(note)["layout"]) if note.exists() else LAYOUTS[0]


def _read_note(note: Path) -> dict[str, Any]:
    try:
        # Earlier versions had fewer options.
        return {**PatchSettings().values(), **json.loads(note.read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{note} cannot be read: {error}") from error


def prepare(folders: Folders, settings: PatchSettings) -> None:
    """Make the folders and write the settings.

    UserError: the folder holds patches of other settings. OutputError: a folder cannot be written.
    """
    note = folders.positive / NOTE
    for folder in {folders.negative, folders.positive / "slides"}:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    values = settings.values()
    if settings.save_neg:
        positive, negative = (folder.resolve() for folder in folders)
        values["save_tumor_negative_path"] = os.path.relpath(negative, positive)
    if note.exists() and any((folders.positive / "slides").glob("*.json")):
        changed = differences(_read_note(note), values)
        if changed:
            raise UserError(
                f"{folders.positive} holds patches of other options: {', '.join(changed)}. Remove it, or "
                "name other folders with --save_positive_path and --save_tumor_negative_path"
            )
    write(note, (json.dumps(values, indent=2) + "\n").encode())


def record_of(folders: Folders, slide: str) -> Path:
    """Return the path of the record of a slide."""
    return folders.positive / "slides" / f"{slide}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Return a record with its rows as PatchRow. DataError: it cannot be read, so this program did not write it."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {**record, **{kind: [PatchRow(*row) for row in record[kind]] for kind in KINDS}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read, so remove it, and the slide is cut again: {error!r}"
        ) from error


def write_record(
    folders: Folders, source: SourceSlide, rows: dict[str, list[PatchRow]], discarded: dict[str, int]
) -> None:
    """Write the record of a slide, which is finished from here on."""
    kinds = {kind: [list(asdict(row).values()) for row in rows[kind]] for kind in KINDS}
    files = None
    with contextlib.suppress(OSError):  # the slide is gone; if it comes back, it is cut again
        files = _files_of(source)
    record = {"slide": source.name, "source": files, "discarded": discarded, **kinds}
    with output_errors(folders.positive):
        _begun_of(folders, source.name).unlink(missing_ok=True)
    write(record_of(folders, source.name), (json.dumps(record) + "\n").encode())


def _begun_of(folders: Folders, slide: str) -> Path:
    return folders.positive / "slides" / f"{slide}.begun"


def _files_of(source: SourceSlide) -> list[Any]:
    """Return what changes with the files of a slide, its label, and how much of it is annotated."""
    return [source.label, *state_of(source.pair.slide), source.pair.partly_annotated]


def _decides(source: SourceSlide, settings: PatchSettings) -> str:
    """Return a text that is the same as long as the patches of a slide are."""
    return json.dumps([*_files_of(source), settings.values()]) + "\n"


def begin(folders: Folders, source: SourceSlide, settings: PatchSettings) -> None:
    """Note that patches of a slide are being written. OSError: the slide is gone."""
    write(_begun_of(folders, source.name), _decides(source, settings).encode())


def was_begun(folders: Folders, source: SourceSlide, settings: PatchSettings) -> bool:
    """Return whether the patches of a slide that are there are what would be written now."""
    try:
        return _begun_of(folders, source.name).read_text() == _decides(source, settings)
    except (OSError, ValueError):
        return False


def is_finished(folders: Folders, source: SourceSlide) -> bool:
    """Return whether a slide's patches are there, cut from the slide and with the label that are there now.

    A record of an earlier version knows of its label only.
    """
    path = record_of(folders, source.name)
    if not path.exists():
        return False
    record = read_record(path)
    if "source" not in record:
        return record.get("label") == source.label
    try:
        return json.dumps(record["source"]) == json.dumps(_files_of(source))
    except OSError:  # the slide is gone, which is said when it is opened
        return False


def finished_slides(folders: Folders) -> set[str]:
    """Return the names of the slides that have a record."""
    return {path.stem for path in (folders.positive / "slides").glob("*.json")}


def remove_slides(folders: Folders, names: Collection[str]) -> int:
    """Delete all files of these slides, their records first, and return how many they were.

    OutputError: one cannot be deleted.
    """
    if not names:
        return 0
    with output_errors(folders.positive):
        return _remove(folders, names)


def _remove(folders: Folders, names: Collection[str]) -> int:
    removed = 0
    for name in names:
        record = record_of(folders, name)
        for path in (record, _begun_of(folders, name), record.with_suffix(".png")):
            if path.exists():
                path.unlink()
                removed += 1
        for kind in KINDS:
            folder = folders.of_patches(kind, name, "slide")
            if folder.is_dir():
                removed += len(os.listdir(folder))
                remove_path(folder)
    for folder in {*folders, folders.positive / "slides"}:
        for entry in os.scandir(folder):
            stem, suffix = os.path.splitext(entry.name)
            slide = slide_of_patch(stem.removeprefix("mask_"))
            if suffix == ".partial":
                inner = re.sub(r"^\.|\.(png|jpg|json|csv|begun)$", "", stem)
                slide = slide_of_patch(inner.removeprefix("mask_")) or inner
            if slide in names:
                os.unlink(entry.path)
                removed += 1
    return removed


def write_tables(folders: Folders) -> dict[str, int]:
    """Write patches.csv of all finished slides into both folders. Return the number of patches of each kind."""
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
