"""Measures where the models of an ensemble disagree: per lesion, and as regions that are worth a human's look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import shapely
from rasterio.features import shapes
from scipy import ndimage

from prediction.grid import Frame
from prediction.raster import TILE, Raster

SCALE = 510.0  # value of a raster per standard deviation: the largest one, 0.5, is 255
CELL_UM = 32.0  # about the side of the cells in which regions are found: a few tumour cells
LOOK_FROM = 0.1  # standard deviation from which a cell is part of a region
LOOK_AT = 20  # regions per slide
LOOK = "look here"


class Doubt(NamedTuple):
    """The rasters of an ensemble beside its probability: uint8 of the size of the output."""

    deviation: Raster  # standard deviation between models, times SCALE
    entropy: Raster  # of the mean probabilities as part of its maximum, times 255


@dataclass(frozen=True)
class Region:
    """A region where the models disagree. The polygon is in pixels of the output."""

    polygon: shapely.Geometry
    score: float  # mm², its area times the mean deviation
    deviation: float  # mean
    entropy: float


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of classes float32 (planes, h, w) as part of its maximum: float32 (h, w), 0 … 1.

    One plane is the probability of the second of two classes.
    """
    if len(probabilities) == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities])
    p = np.clip(probabilities, 1e-7, 1)
    return np.asarray(np.clip(-(p * np.log(p)).sum(axis=0) / np.log(len(p)), 0, 1))


def cell_means(raster: Raster, side: int, scale: float = 255.0) -> np.ndarray:
    """Return the means of squares of `side` pixels (a power of two up to TILE), over `scale`: float32 (h, w)."""
    count = TILE // side
    means = np.zeros((raster.rows * count, raster.columns * count), np.float32)
    for row, column in np.ndindex(raster.rows, raster.columns):
        if raster.holds(row, column):
            part = slice(row * count, (row + 1) * count), slice(column * count, (column + 1) * count)
            tile = raster.tile(row, column).astype(np.float32)
            means[part] = cv2.resize(tile, (count, count), interpolation=cv2.INTER_AREA) / scale
    return means[: -(-raster.height // side), : -(-raster.width // side)]


def of_lesions(doubt: Doubt, numbers: np.ndarray, side: int, count: int) -> list[dict[str, float]]:
    """Return the mean deviation and entropy of lesions 1 to `count`, as the GeoJSON has them.

    numbers: int32 (h, w), the lesions' numbers in cells of `side` pixels, 0 for none.
    """
    cells = np.maximum(np.bincount(numbers.ravel(), minlength=count + 1), 1)

    def means(raster: Raster, scale: float) -> np.ndarray:
        values = cell_means(raster, side, scale)
        return np.bincount(numbers.ravel(), values.ravel(), count + 1) / cells

    pairs = zip(means(doubt.deviation, SCALE)[1:], means(doubt.entropy, 255.0)[1:])
    return [{"disagreement": round(float(a), 6), "entropy": round(float(b), 6)} for a, b in pairs]


def regions_of(doubt: Doubt, frame: Frame) -> list[Region]:
    """Return the regions where the models disagree, those where most pixels may be wrong first, at most LOOK_AT."""
    side = int(np.clip(2 ** round(np.log2(CELL_UM / frame.spacing)), 1, TILE))
    deviation, entropy = cell_means(doubt.deviation, side, SCALE), cell_means(doubt.entropy, side)
    # Cells beside each other, or with one between them, are one region.
    near = cv2.dilate((deviation >= LOOK_FROM).astype(np.uint8), np.ones((3, 3), np.uint8))
    labels, count = ndimage.label(near, np.ones((3, 3)))
    if not count:
        return []
    cell_mm2 = (side * frame.spacing / 1000) ** 2
    numbers = np.arange(1, count + 1)
    scores = ndimage.sum_labels(deviation, labels, numbers) * cell_mm2
    best = numbers[np.argsort(-scores, kind="stable")[:LOOK_AT]]
    outlines: dict[int, list[shapely.Geometry]] = {int(number): [] for number in best}
    for geometry, number in shapes(labels.astype(np.int32), mask=np.isin(labels, best), connectivity=8):
        outlines[int(number)].append(shapely.geometry.shape(geometry))
    means = [ndimage.mean(values, labels, best) for values in (deviation, entropy)]
    frame_box = shapely.box(0, 0, frame.width, frame.height)
    return [
        Region(
            shapely.intersection(
                shapely.transform(shapely.union_all(outlines[int(number)]), lambda points: points * side),
                frame_box,
            ),
            *map(float, (scores[number - 1], means[0][place], means[1][place])),
        )
        for place, number in enumerate(best)
    ]


def write_look_here(
    path: Path, regions: Sequence[Region], downsample: float, origin: tuple[int, int]
) -> None:
    """Write a GeoJSON feature per region, ranked, in level-0 pixels from QuPath's `origin` on."""
    marked = [
        Marked(
            shapely.transform(region.polygon, lambda points: points * downsample),
            f"{LOOK} {rank}",
            LOOK,
            (255, 234, 0),
            {
                "rank": rank,
                "score mm2": round(region.score, 6),
                "disagreement": round(region.deviation, 6),
                "entropy": round(region.entropy, 6),
            },
        )
        for rank, region in enumerate(regions, 1)
    ]
    write_marked(path, marked, origin)


class Marked(NamedTuple):
    """A region that QuPath shows as an annotation. The outline is in level-0 pixels."""

    outline: shapely.Geometry
    name: str
    group: str  # QuPath's classification
    colour: tuple[int, int, int]
    measurements: dict[str, float]


def write_marked(path: Path, marked: Sequence[Marked], origin: tuple[int, int]) -> None:
    """Write a GeoJSON feature per region, with positions from QuPath's `origin` on."""
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(
                shapely.transform(region.outline, lambda points: points - origin)
            ),
            "properties": {
                "objectType": "annotation",
                "name": region.name,
                "classification": {"name": region.group, "color": list(region.colour)},
                "measurements": region.measurements,
            },
        }
        for region in marked
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n", encoding="utf-8")
