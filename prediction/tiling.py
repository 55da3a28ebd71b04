"""Where patches are predicted, and how they are put together: strip after strip, with a bounded memory.

All places are in pixels of the output, which has the spacing of the patches; `_l0` are level-0 pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samplers.tissue import window_sums, windows_of

_ROWS = 64  # that are divided by their weights at a time
_LEAST = 1e-3  # weight of a patch's edge: some pixels have nothing else


class Row(NamedTuple):
    """The patches at one height: upper left corners (x, y)."""

    y: int
    xs: list[int]


def starts(extent: int, size: int, stride: int) -> list[int]:
    """Corners along an axis; the last patch ends with the slide."""
    return [*range(0, extent - size, stride), extent - size]


def grid(
    width: int,
    height: int,
    size: int,
    stride: int,
    downsample: float,
    tissue: np.ndarray | None,
    cell: tuple[float, float],
) -> list[Row]:
    """The patches of a slide that meet tissue, bool (h, w) with pixels of `cell` level-0 pixels; None: all."""
    ys, xs = starts(height, size, stride), starts(width, size, stride)
    if tissue is None:
        return [Row(y, xs) for y in ys]
    corners_l0 = [np.array(places) * downsample for places in (ys, xs)]
    wanted = window_sums(tissue, *windows_of(corners_l0, int(np.ceil(size * downsample)), cell)) > 0
    rows = [Row(y, [x for x, meets in zip(xs, row) if meets]) for y, row in zip(ys, wanted)]
    return [row for row in rows if row.xs]


def bands(rows: Sequence[Row], height: int, count: int) -> list[tuple[int, int]]:
    """Divides the output's rows 0 … height into `count` bands with about as many patches each."""
    patches = np.cumsum([len(row.xs) for row in rows])
    edges = [0]
    for number in range(1, count):
        first = int(np.searchsorted(patches, patches[-1] * number / count)) + 1 if len(patches) else 0
        edges.append(max(edges[-1], rows[first].y if first < len(rows) else height))
    return list(zip(edges, [*edges[1:], height]))


def window(size: int) -> np.ndarray:
    """Weights of a patch's pixels along an axis, float32 (size,): Hann's, so that no edge shows."""
    return (np.hanning(size + 2)[1:-1] + _LEAST).astype(np.float32)


@dataclass(frozen=True)
class RawMap:
    """A file of uint8 (height, width) on disk; what was not written is 0 and takes no room."""

    path: Path
    width: int
    height: int

    def create(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(self.width * self.height)

    def write(self, x: int, y: int, pixels: np.ndarray) -> None:
        """uint8 (h, w) to the place (x, y). OSError: the disk is full."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            for number, row in enumerate(np.ascontiguousarray(pixels)):
                written = os.pwrite(descriptor, row, (y + number) * self.width + x)
                if written != row.nbytes:
                    raise OSError(f"{self.path}: only {written} of {row.nbytes} bytes could be written")
        finally:
            os.close(descriptor)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A copy of a window, clipped to the map."""
        # Mapped anew each time: pages that stay mapped count as this process's memory.
        whole = np.memmap(self.path, np.uint8, "r", shape=(self.height, self.width))
        return np.array(whole[y : y + height, x : x + width])


class Blend:
    """Weighted mean of overlapping patches, handed out from above as soon as no other patch can change it.

    Two classes: probability of class 1; more: all, to find the most probable. Rows come from above; only those
    of `band` (first, behind the last) are written to the maps: `probability` of any class but 0, as 0 … 255,
    and `prediction`, the class.
    """

    def __init__(
        self, size: int, classes: int, threshold: float, probability: RawMap, prediction: RawMap,
        band: tuple[int, int],
    ) -> None:  # fmt: skip
        self.size, self.classes, self.band = size, classes, band
        self.least = int(np.ceil(threshold * 255))
        self.probability, self.prediction = probability, prediction
        self.window = window(size)
        self.weights = np.multiply.outer(self.window, self.window)[..., None]
        self.top = 0  # of the buffer
        self.sums = np.zeros((size, probability.width, 1 if classes == 2 else classes), np.float32)
        self.rows: list[tuple[int, np.ndarray]] = []  # of patches: y, weights along the row

    def add(self, x: int, y: int, probabilities: np.ndarray) -> None:
        """A patch, float32 (size, size, classes), whose row is not above that of the one before."""
        if not self.rows or y != self.rows[-1][0]:
            self._advance(y)
            self.rows.append((y, np.zeros(self.probability.width, np.float32)))
        part = probabilities[..., 1:] if self.classes == 2 else probabilities
        self.sums[:, x : x + self.size] += part * self.weights
        self.rows[-1][1][x : x + self.size] += self.window

    def finish(self) -> None:
        self._advance(self.top + self.size)

    def _advance(self, y: int) -> None:
        """Writes the rows above y; the buffer begins at y."""
        end = min(y, self.top + self.size)
        for first in range(max(self.top, self.band[0]), min(end, self.band[1]), _ROWS):
            self._write(first, min(first + _ROWS, end, self.band[1]))
        kept = self.top + self.size - end
        self.sums[:kept] = self.sums[self.size - kept :]
        self.sums[kept:] = 0
        self.top = y
        self.rows = [row for row in self.rows if row[0] + self.size > y]

    def _write(self, first: int, end: int) -> None:
        weights = np.zeros((end - first, self.probability.width), np.float32)
        for y, along in self.rows:
            low, high = max(first, y), min(end, y + self.size)
            if low < high:
                weights[low - first : high - first] += np.multiply.outer(
                    self.window[low - y : high - y], along
                )
        covered = np.flatnonzero(np.diff(np.concatenate([[0], weights.any(axis=0).astype(np.int8), [0]])))
        for left, right in covered.reshape(-1, 2):
            weight = weights[:, left:right, None]
            sums = self.sums[first - self.top : end - self.top, left:right]
            mean = np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0)
            tumour = mean[..., 0] if self.classes == 2 else 1 - mean[..., 0] * (weight[..., 0] > 0)
            grey = np.clip(np.rint(tumour * 255), 0, 255).astype(np.uint8)
            if self.classes == 2:
                classes = (grey >= self.least).astype(np.uint8)
            else:
                classes = mean.argmax(axis=-1).astype(np.uint8)
                grey[weight[..., 0] == 0] = 0
            self.probability.write(left, first, grey)
            self.prediction.write(left, first, classes)
