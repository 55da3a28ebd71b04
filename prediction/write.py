"""Writes the files of a predicted slide: pyramids, outlines for QuPath and ASAP, an overlay, CAMELYON16's table."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import shapely
import tifffile

from prediction.grid import Frame
from prediction.lesions import Cells, PredictedLesion
from prediction.outlines import without_islands
from prediction.raster import TILE, Raster
from samplers.slides.slide import Slide
from utils.files import output_errors
from utils.pictures import OUTLINE_PREDICTION, colour_of, draw_outline

OVERLAY = 2048  # longer side of the overlay in pixels
EXCLUSION = "Exclusion"  # ASAP's XML has no holes: they are polygons of this group, which is painted last
_RINGS = 4096  # whose points are looked at together
_OPACITY = 0.6  # of the heat map where tumour is more probable than not


def write_tiff(path: Path, raster: Raster, spacing: float, labels: bool, description: str) -> None:
    """Write a pyramidal tiled BigTIFF with one band, deflate, its spacing (µm/px) and a description.

    Each level halves the one before, until one tile holds it. Its pixels are means of four, or every second pixel for
    `labels`, whose values must stay. Tiles are streamed: libvips would map the whole raster (`rawload`), and a map of
    10 GB counts as memory once it has been read. OutputError: the file cannot be written.
    """
    level, number = raster, 0
    with output_errors(path):
        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            while True:
                tiff.write(
                    _tiles(level),
                    shape=(level.height, level.width),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="minisblack",
                    compression="zlib",
                    resolution=(1e4 / spacing / 2**number,) * 2,
                    resolutionunit="CENTIMETER",
                    subfiletype=1 if number else 0,
                    description=None if number else description,
                    metadata=None,
                )
                if max(level.width, level.height) <= TILE:
                    break
                number += 1
                finer, level = level, _half(level, path.with_suffix(f".{number}"), labels)
                if finer is not raster:
                    finer.discard()
        if level is not raster:
            level.discard()


def _tiles(raster: Raster) -> Iterator[bytes]:
    """Yield the deflated tiles, row by row."""
    empty = zlib.compress(bytes(TILE * TILE))  # compressed once, since most tiles of a slide are empty
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:

        def deflated(row: int, column: int) -> bytes:
            return zlib.compress(raster.tile(row, column).data) if raster.holds(row, column) else empty

        columns = range(raster.columns)
        for row in range(raster.rows):  # not all at once: the pool would deflate faster than is written
            yield from pool.map(deflated, [row] * len(columns), columns)


def _half(raster: Raster, path: Path, labels: bool) -> Raster:
    """Return the raster at half its size, rounded down, in a new file at `path`."""
    path.unlink(missing_ok=True)  # a killed run may have left it
    half = Raster(path, max(1, raster.width // 2), max(1, raster.height // 2))
    method = cv2.INTER_NEAREST if labels else cv2.INTER_AREA
    for row, column in np.ndindex(half.rows, half.columns):
        left, top = column * TILE, row * TILE
        size = min(TILE, half.width - left), min(TILE, half.height - top)
        pixels = raster.read(2 * left, 2 * top, 2 * size[0], 2 * size[1])
        if pixels.any():
            half.write(left, top, cv2.resize(pixels, size, interpolation=method))
    return half


def write_overlay(path: Path, slide: Slide, cells: Cells, numbers: np.ndarray) -> None:
    """Write a PNG of the slide with the probability as a heat map and the lesions outlined in yellow.

    numbers: int32 (h, w), the lesions' numbers in the cells, 0 for none. ReadError: the slide cannot be read.
    """
    picture = slide.thumbnail(OVERLAY)
    size = (picture.shape[1], picture.shape[0])
    shrinks = cells.mean.shape[0] > size[1]
    heat = cv2.resize(cells.mean, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    opacity = (_OPACITY * np.clip(2 * heat - 0.1, 0, 1))[:, :, None]  # none where the probability is near 0
    picture = (picture * (1 - opacity) + colours * opacity).astype(np.uint8)
    inside = cv2.resize((numbers > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    picture = draw_outline(picture, np.greater(inside, 0), OUTLINE_PREDICTION)
    path.write_bytes(cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes())


def write_lesions(path: Path, lesions: Sequence[PredictedLesion], frame: Frame) -> None:
    """Write a line `confidence,X,Y` per lesion in level-0 pixels, without header, as the organisers' program wants."""
    scale = frame.downsample
    lines = [
        f"{lesion.confidence:.6f},{int((lesion.x + 0.5) * scale)},{int((lesion.y + 0.5) * scale)}\n"
        for lesion in sorted(lesions, key=lambda lesion: -lesion.confidence)
    ]
    path.write_text("".join(lines))


def write_geojson(
    path: Path,
    lesions: Sequence[PredictedLesion],
    names: Sequence[str],
    downsample: float,
    origin: tuple[int, int],
    more: Sequence[dict[str, float]] = (),
) -> None:
    """Write one feature per lesion and class: polygons with holes, in level-0 pixels from QuPath's `origin` on.

    `more`: further measurements of each lesion.

    Polygon by polygon: as numbers of Python the points of all would take ten times the memory.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        outlines = (
            (number, lesion, outline)
            for number, lesion in enumerate(lesions, 1)
            for outline in lesion.outlines
        )
        for place, (number, lesion, outline) in enumerate(outlines):
            file.write(
                "," * (place > 0) + '{"type":"Feature","geometry":{"type":"MultiPolygon","coordinates":['
            )
            for inner, polygon in enumerate(outline.polygons):
                rings = list(_rings(shapely.get_rings(polygon), downsample, origin))
                file.write("," * (inner > 0) + json.dumps(rings, separators=(",", ":")))
            properties = {
                "objectType": "annotation",
                "name": f"lesion {number}",
                "classification": {"name": names[outline.value - 1], "color": colour_of(outline.value)},
                "measurements": {
                    "confidence": round(lesion.confidence, 6),
                    "diameter mm": round(lesion.diameter, 6),
                    "area mm2": round(lesion.area, 6),
                    **(more[number - 1] if more else {}),
                },
            }
            file.write(']},"properties":' + json.dumps(properties, separators=(",", ":")) + "}")
        file.write("]}\n")


def write_asap(
    path: Path, lesions: Sequence[PredictedLesion], names: Sequence[str], downsample: float
) -> None:
    """Write ASAP's XML: an annotation per polygon, and one of the group Exclusion per hole, in level-0 pixels."""
    whole = [
        (f"lesion {number}", names[outline.value - 1], polygon)
        for number, lesion in enumerate(lesions, 1)
        for outline in lesion.outlines
        for polygon in outline.polygons
    ]
    holes, cut = without_islands([polygon for *_, polygon in whole])
    parts = [(name, group, part) for (name, group, _), some in zip(whole, cut) for part in some]
    parts += [("hole", EXCLUSION, hole) for hole in holes]
    groups = {name: colour_of(number) for number, name in enumerate([*dict.fromkeys(names), EXCLUSION], 1)}
    write_polygons(path, parts, groups, downsample)


def write_polygons(
    path: Path,
    parts: Sequence[tuple[str, str, shapely.Polygon]],
    groups: Mapping[str, tuple[int, int, int]],
    downsample: float | None = None,
) -> None:
    """Write ASAP's XML of (name, group, polygon) in pixels of `downsample` level-0 ones, and the groups' colours.

    Without a downsample the points are in level-0 pixels, and written as they are.
    """
    # Some at a time, since these are copies.
    rings = (
        ring
        for first in range(0, len(parts), _RINGS)
        for ring in _rings(
            shapely.get_exterior_ring([part for *_, part in parts[first : first + _RINGS]]), downsample
        )
    )
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0"?>\n<ASAP_Annotations>\n\t<Annotations>\n')
        for (name, group, _), ring in zip(parts, rings):
            file.write(
                f'\t\t<Annotation Name={quoteattr(name)} Type="Polygon" PartOfGroup={quoteattr(group)} '
                f'Color="{_hex(groups[group])}">\n\t\t\t<Coordinates>\n'
            )
            for order, (x, y) in enumerate(ring[:-1]):
                file.write(f'\t\t\t\t<Coordinate Order="{order}" X="{x}" Y="{y}" />\n')
            file.write("\t\t\t</Coordinates>\n\t\t</Annotation>\n")
        file.write("\t</Annotations>\n\t<AnnotationGroups>\n")
        for group, colour in groups.items():
            file.write(
                f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color="{_hex(colour)}">'
                "<Attributes /></Group>\n"
            )
        file.write("\t</AnnotationGroups>\n</ASAP_Annotations>\n")


def _rings(
    rings: Any, downsample: float | None, origin: tuple[int, int] = (0, 0)
) -> Iterator[list[list[float]]]:
    """Yield the points of closed rings in level-0 pixels from `origin` on, as integers where the downsample is one.

    Without a downsample they are in level-0 pixels already, and need not be integers.
    """
    points, owner = shapely.get_coordinates(rings, return_index=True)
    points = points * (downsample or 1) - origin
    if downsample and float(downsample).is_integer():
        points = points.astype(np.int64)
    for part in np.split(points, np.flatnonzero(np.diff(owner)) + 1):
        yield part.tolist()


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
