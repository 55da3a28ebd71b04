"""Rasterising of polygons, in numpy, such that a pixel's value does not depend on the window that is looked at.

A pixel is inside if its centre is. Centres lie at half-integers of the pixel grid: level-0 pixel i covers [i, i + 1).
Even-odd rule over all rings of a valid polygon, so holes need nothing special. Nothing is clipped: clipping makes new
vertices, and rounding them would move the outline by a pixel from one window to the next.
"""

from __future__ import annotations

import numpy as np
import shapely

# A finer step than the pixel in which outlines are followed by `touched`.
_STEPS_PER_PIXEL = 8


def edges_of(geometry: shapely.Geometry) -> np.ndarray:
    """All edges of a polygon's or multipolygon's rings: float64 (n, 4) of x1, y1, x2, y2; horizontal ones included."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    parts = [shapely.get_coordinates(ring) for ring in rings]
    if not parts:
        return np.zeros((0, 4))
    return np.concatenate([np.hstack([points[:-1], points[1:]]) for points in parts])


def fill(edges: np.ndarray, x: float, y: float, width: int, height: int, downsample: float) -> np.ndarray:
    """Which pixels of a window lie inside: bool (height, width).

    `edges` (n, 4) and the window's corner x, y are in level 0, the window's size in pixels of `downsample`.
    A pixel is inside if a ray from its centre to the left crosses an odd number of edges. Each edge includes its upper
    end only, so that a vertex counts once.
    """
    # Select in level 0, with a margin: the comparison that decides is made on the centres below.
    top, bottom = np.minimum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 1], edges[:, 3])
    left = np.minimum(edges[:, 0], edges[:, 2])
    near = (top < y + height * downsample) & (bottom > y) & (left < x + width * downsample) & (top != bottom)
    x1, y1, x2, y2 = edges[near].T
    centres_y = y + (np.arange(height) + 0.5) * downsample
    first = np.searchsorted(centres_y, np.minimum(y1, y2), side="left")
    last = np.searchsorted(centres_y, np.maximum(y1, y2), side="left")  # exclusive
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (x2 - x1) / (y2 - y1)
    cross_x = x1[edge] + (centres_y[row] - y1[edge]) * slope[edge]
    centres_x = x + (np.arange(width) + 0.5) * downsample
    column = np.searchsorted(centres_x, cross_x, side="right")  # first pixel to the right of the crossing
    toggles = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).astype(np.uint8) & 1
    toggles = toggles.reshape(height, width + 1)[:, :width]
    return np.bitwise_xor.accumulate(toggles, axis=1).view(bool)


def touched(edges: np.ndarray, x: float, y: float, width: int, height: int, downsample: float) -> np.ndarray:
    """Which pixels of a window an outline runs through (to an eighth of a pixel): bool (height, width)."""
    delta = edges[:, 2:] - edges[:, :2]
    steps = np.ceil(np.abs(delta).max(axis=1, initial=0) / downsample * _STEPS_PER_PIXEL).astype(np.int64) + 1
    edge = np.repeat(np.arange(len(edges)), steps)
    part = (np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)) / np.maximum(steps[edge], 1)
    points = edges[edge, :2] + part[:, None] * delta[edge]
    columns, rows = np.floor((points - (x, y)) / downsample).astype(np.int64).T
    hit = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result = np.zeros((height, width), bool)
    result[rows[hit], columns[hit]] = True
    return result
