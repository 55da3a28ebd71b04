"""Finds the lesions of a predicted slide on a map that fits into memory, and measures them on the slide's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from scipy.spatial.distance import pdist

from evaluation.lesions import find_lesions
from prediction.grid import Frame
from prediction.outlines import ClassOutline, trace
from prediction.raster import TILE, Raster

MAX_CELLS = 16 << 20  # cells of the map on which lesions are told apart


@dataclass(frozen=True)
class Cells:
    """A predicted slide at low magnification. A cell is `side` × `side` pixels of the output."""

    side: int
    peak: (
        np.ndarray
    )  # uint8 (h, w): highest probability of the tumour pixels, 1 … 255, or 0 if there are none
    mean: np.ndarray  # float32 (h, w): mean probability of all pixels, 0 … 1


@dataclass(frozen=True)
class PredictedLesion:
    """A lesion in a prediction. Places and outlines are in pixels of the output."""

    outlines: list[ClassOutline]  # at most one per class
    confidence: float  # mean probability of its pixels, 0 … 1
    x: int  # a pixel inside the lesion, as far from its edge as possible
    y: int
    diameter: float  # mm, the longest distance from edge to edge
    area: float  # mm²


def cells_of(probability: Raster, classes: Raster) -> Cells:
    """Return the cells of a slide. Their side is the smallest power of two with which they are at most MAX_CELLS.

    ValueError: a cell would be larger than a tile, which is so from 4 million pixels of both sides on.
    """
    width, height = probability.width, probability.height
    side = 1
    while -(-width // side) * -(-height // side) > MAX_CELLS:
        side *= 2
    if side > TILE:
        raise ValueError(f"a slide of {width} × {height} pixels is too large")
    count = TILE // side  # cells along a tile
    # As many as the tiles have; those beyond the end are cut off in the end.
    shape = probability.rows * count, probability.columns * count
    peak, mean = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for row, column in np.ndindex(probability.rows, probability.columns):
        part = (
            slice(row * count, (row + 1) * count),
            slice(column * count, (column + 1) * count),
        )
        found = np.zeros((TILE, TILE), np.uint8)
        if probability.holds(row, column):
            found = probability.tile(row, column)
            mean[part] = cv2.resize(found, (count, count), interpolation=cv2.INTER_AREA) / 255
        if classes.holds(row, column):
            highest = np.maximum(found, 1) * (classes.tile(row, column) > 0)
            peak[part] = highest.reshape(count, side, count, side).max(axis=(1, 3))
    rows, columns = -(-height // side), -(-width // side)
    return Cells(
        side, np.ascontiguousarray(peak[:rows, :columns]), np.ascontiguousarray(mean[:rows, :columns])
    )


def slide_probability(cells: Cells, frame: Frame, side_mm: float) -> float:
    """Return the probability that the slide has tumour: the highest mean over a square of `side_mm`, 0 … 1.

    The highest probability of single pixels would be that of a speck.
    """
    side = max(1, round(side_mm * 1000 / (frame.spacing * cells.side)))
    means = cv2.blur(cells.mean, (side, side), borderType=cv2.BORDER_CONSTANT)
    return float(np.clip(means.max(), 0, 1))


def lesions_of(
    cells: Cells, frame: Frame, probability: Raster, classes: Raster, min_diameter: float
) -> tuple[list[PredictedLesion], np.ndarray]:
    """Return the lesions of at least `min_diameter` mm, and a map of their numbers from 1 on: int32 (h, w) of cells.

    A lesion is a connected region; cells that share only a corner are connected as well. Lesions are not merged over
    75 µm, as CAMELYON16 merges its ground truth: the specks between them would join them, with fewer hits and larger
    diameters as the result.
    """
    if not cells.peak.any():
        return [], np.zeros(cells.peak.shape, np.int32)
    # Cells make a lesion larger than its pixels do: find it with cells, then measure its pixels.
    rows, columns = (np.flatnonzero(cells.peak.any(axis=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    labels = np.zeros(cells.peak.shape, np.int32)
    spacing = frame.spacing * cells.side
    found, labels[window] = find_lesions(
        cells.peak[window], spacing, threshold=1 / 255, merge=0, min_diameter=1000 * min_diameter
    )
    traced = trace(classes, labels, cells.side)
    confidences = _mean_probabilities(probability, classes, labels, cells.side, len(found))
    lesions: list[PredictedLesion] = []
    numbers = np.zeros(len(found) + 1, np.int32)
    for lesion in found:
        outlines = traced[lesion.label]
        polygons = np.array([part for outline in outlines for part in outline.polygons])
        diameter = _longest(polygons) * frame.spacing / 1000
        if diameter < min_diameter:
            continue
        place = ((lesion.x + columns[0]) * cells.side, (lesion.y + rows[0]) * cells.side)
        x, y = _pixel_inside(polygons, *place)
        area = float(shapely.area(polygons).sum()) * (frame.spacing / 1000) ** 2
        lesions.append(PredictedLesion(outlines, float(confidences[lesion.label]), x, y, diameter, area))
        numbers[lesion.label] = len(lesions)
    return lesions, numbers[labels]


def _mean_probabilities(
    probability: Raster, classes: Raster, labels: np.ndarray, side: int, count: int
) -> np.ndarray:
    """Return the mean probability of the tumour pixels of each label, from 0 to `count`: float64, 0 … 1."""
    sums, pixels, cells = np.zeros(count + 1), np.zeros(count + 1), TILE // side
    for row, column in np.ndindex(classes.rows, classes.columns):
        part = labels[row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
        if not classes.holds(row, column) or not part.any():
            continue
        of_pixels = part.repeat(side, axis=0).repeat(side, axis=1)
        window = tuple(slice(length) for length in of_pixels.shape)
        tumour = classes.tile(row, column)[window] > 0
        found = np.zeros(of_pixels.shape, np.uint8)
        if probability.holds(row, column):
            found = probability.tile(row, column)[window]
        pixels += np.bincount(of_pixels[tumour], minlength=count + 1)
        sums += np.bincount(of_pixels[tumour], weights=found[tumour], minlength=count + 1)
    return sums / 255 / np.maximum(pixels, 1)


def _longest(polygons: np.ndarray) -> float:
    """Return the longest distance between two corners of polygons along the edges of pixels."""
    parts = np.array_split(polygons, -(-len(polygons) // 4096))  # there may be millions of them
    hulls = [cv2.convexHull(shapely.get_coordinates(part).astype(np.int32)) for part in parts]
    return float(pdist(cv2.convexHull(np.concatenate(hulls))[:, 0]).max())


def _pixel_inside(polygons: np.ndarray, x: float, y: float) -> tuple[int, int]:
    """Return the pixel at (x, y), or another one if this is not inside any of the polygons."""
    pixel = (int(x), int(y))
    if shapely.contains_xy(polygons, pixel[0] + 0.5, pixel[1] + 0.5).any():
        return pixel
    largest = polygons[np.argmax(shapely.area(polygons))]
    point = shapely.point_on_surface(largest)
    return int(point.x), int(point.y)


def remove_small(cells: Cells, numbers: np.ndarray, classes: Raster) -> None:
    """Set the pixels of the prediction that belong to no lesion to 0. `numbers`: as from `lesions_of`."""
    side, gone = cells.side, (cells.peak > 0) & (numbers == 0)
    step = max(1, 4096 // side)
    for first in np.flatnonzero(np.add.reduceat(gone.any(axis=1), np.arange(0, len(gone), step))) * step:
        part = gone[first : first + step]
        columns = np.flatnonzero(part.any(axis=0))
        left, right = columns[0], columns[-1] + 1
        pixels = classes.read(left * side, first * side, (right - left) * side, step * side)
        erased = part[:, left:right].repeat(side, axis=0).repeat(side, axis=1)
        pixels[erased[: pixels.shape[0], : pixels.shape[1]]] = 0
        classes.write(int(left * side), int(first * side), pixels)
