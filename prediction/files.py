"""The files of a prediction: TIFFs, overlay, tables, and the record that a slide is finished.

    <output>/<slide>_probability.tif, _prediction.tif, _overlay.png, .xml, .geojson
    <output>/lesions/<slide>.csv      confidence,X,Y
    <output>/slides.csv
    <output>/prediction.json          model and options
    <output>/records/<slide>.json     the slide's row of slides.csv; written last

Each file is written under another name and renamed; a slide without a record is done again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyvips
import shapely

from evaluation.lesions import FoundLesion
from prediction.outlines import Area
from prediction.tiling import RawMap
from samplers.slide import DataError, Slide
from utils.files import write_aside

COLUMNS = (
    *("slide", "probability", "largest_lesion_mm", "node_label", "tumour_area_mm2", "lesions", "seconds"),
)
OVERLAY = 2048  # pixels of the longer side
ENDINGS = ("_probability.tif", "_prediction.tif", "_overlay.png", ".xml", ".geojson")


def prepare(output: Path, values: dict[str, Any]) -> None:
    """Makes the folder and notes model and options. ValueError: it holds predictions of others."""
    note = output / "prediction.json"
    (output / "records").mkdir(parents=True, exist_ok=True)
    (output / "lesions").mkdir(exist_ok=True)
    if note.exists() and any((output / "records").glob("*.json")):
        try:
            before = dict(json.loads(note.read_text()))
        except (OSError, ValueError) as error:
            raise DataError(f"{note} cannot be read: {error}") from error
        differences = [f"--{k} was {before.get(k)}, is {v}" for k, v in values.items() if before.get(k) != v]
        if differences:
            raise ValueError(
                f"{output} holds predictions of others: {', '.join(differences)}. Remove it, or name another --output"
            )
    write_aside(note, lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))


def record_of(output: Path, slide: str) -> Path:
    return output / "records" / f"{slide}.json"


def raw_maps(output: Path, slide: str, width: int, height: int) -> tuple[RawMap, RawMap]:
    """(probability, prediction), while a slide is predicted."""
    names = (output / f".{slide}_{name}.raw" for name in ("probability", "prediction"))
    probability, prediction = (RawMap(path, width, height) for path in names)
    return probability, prediction


def remove_unfinished(output: Path, slide: str) -> None:
    """Takes away what a slide that was not finished has left."""
    found = [output / "lesions" / f"{slide}.csv", *raw_files(output, slide)]
    found += [output / f"{slide}{ending}" for ending in ENDINGS]
    for path in found:
        path.unlink(missing_ok=True)
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)


def raw_files(output: Path, slide: str) -> list[Path]:
    return [raw.path for raw in raw_maps(output, slide, 0, 0)]


def write_tiff(path: Path, raw: RawMap, spacing: float, shrink: str) -> None:
    """A pyramidal, tiled, losslessly compressed TIFF with its spacing in µm/px, streamed from the raw file."""
    image = pyvips.Image.rawload(str(raw.path), raw.width, raw.height, 1, access="sequential")
    image = image.copy(xres=1000 / spacing, yres=1000 / spacing, interpretation="b-w")

    def save(partial: Path) -> None:
        image.tiffsave(
            str(partial), tile=True, tile_width=512, tile_height=512, pyramid=True, compression="deflate",
            bigtiff=raw.width * raw.height >= 1 << 31, resunit="cm", region_shrink=shrink, properties=False,
        )  # fmt: skip

    try:
        write_aside(path, save)
    except pyvips.Error as error:
        raise OSError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def write_bytes(path: Path, content: bytes) -> None:
    write_aside(path, lambda partial: partial.write_bytes(content))


def overlay(slide: Slide, probability: np.ndarray, areas: Iterable[Area], downsample: float) -> np.ndarray:
    """Thumbnail with the probability as colour and the areas' outlines: uint8 RGB (h, w, 3).

    probability: uint8 (h, w), the map at a low magnification.
    """
    picture = slide.thumbnail(OVERLAY)
    height, width = picture.shape[:2]
    grey = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    alpha = (0.6 / 255 * grey.astype(np.float32))[..., None]
    mixed = np.ascontiguousarray((picture * (1 - alpha) + heat * alpha).round().astype(np.uint8))
    scale = downsample * np.array([width / slide.width, height / slide.height])
    for area in areas:
        for ring in (area.polygon.exterior, *area.polygon.interiors):
            points = (shapely.get_coordinates(ring) * scale).round().astype(np.int32)
            cv2.polylines(mixed, [points], True, (0, 0, 0), 2)
    return mixed


def png(picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def lesion_table(lesions: Iterable[FoundLesion]) -> bytes:
    """`confidence,X,Y`, X and Y in level-0 pixels, without a header; empty if there are none."""
    return "".join(f"{lesion.confidence:.6f},{lesion.x:.1f},{lesion.y:.1f}\n" for lesion in lesions).encode()


def write_slides(output: Path) -> list[dict[str, Any]]:
    """slides.csv of all records; returns its rows. DataError: a record cannot be read."""
    rows = []
    for path in sorted((output / "records").glob("*.json")):
        try:
            rows.append({name: json.loads(path.read_text())[name] for name in COLUMNS})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read ({error!r}): remove it and the slide is done again"
            ) from error
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(output / "slides.csv", text.getvalue().encode())
    return rows
