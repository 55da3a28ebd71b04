"""A slide through the model: patches are read, predicted and blended at the same time, strip by strip.

In memory are the probabilities of one row of patches; what no later patch touches goes to the rasters.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from prediction.grid import Frame, Grid
from prediction.raster import Raster
from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide

READERS = min(4, len(os.sched_getaffinity(0)))  # threads; libvips and OpenCV do not hold Python's lock
AHEAD = 2  # batches that are read while one is predicted, and that wait to be blended
ATTEMPTS = 3  # libvips tells of faults by process, not by thread, see samplers/vips_errors.py
GLASS = 255  # what is beyond the end of a slide that is smaller than a patch
_ROWS = 64  # that are written at once

Forward = Callable[[np.ndarray], np.ndarray]  # uint8 (B, H, W, 3) → float32 (B, planes, H, W)


def read_patch(slide: Slide, frame: Frame, x: int, y: int, size: int) -> np.ndarray:
    """uint8 RGB (size, size, 3) at a pixel of the output. ReadError: it cannot be read, tried thrice."""
    width, height = min(size, frame.width), min(size, frame.height)
    scale = frame.downsample
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if scale == 1:
                pixels = slide.read(x, y, width, height)
            else:
                pixels = slide.read_at(round(x * scale), round(y * scale), width, height, frame.spacing)
            break
        except ReadError:
            if attempt == ATTEMPTS:
                raise
    if pixels.shape[:2] == (size, size):
        return pixels
    padding = ((0, size - height), (0, size - width), (0, 0))
    return np.pad(pixels, padding, constant_values=GLASS)


class Canvas:
    """Adds up weighted patches, row of patches by row of patches, and writes the rows that are finished.

    Of two classes it keeps the probability of the second, of more those of all. `threshold` is of two classes.
    """

    def __init__(
        self, grid: Grid, band: tuple[int, int], planes: int, threshold: float, rasters: tuple[Raster, Raster]
    ) -> None:
        self.grid, self.threshold = grid, threshold
        self.probability, self.classes = rasters
        columns = np.flatnonzero(grid.chosen.any(axis=0))
        self.left = int(grid.xs[columns[0]]) if len(columns) else 0
        right = int(grid.xs[columns[-1]]) + grid.size if len(columns) else 1
        # Row y of the picture is row y % size here.
        self.sums = np.zeros((planes, grid.size, right - self.left), np.float32)
        self.row = -1
        self.top, self.stop = band  # what is finished ends at `top`; only rows of the band are written

    def add(self, row: int, columns: np.ndarray, patches: np.ndarray) -> None:
        """Patches of a row: float32 (B, planes, size, size). Rows never go back."""
        y, size = int(self.grid.ys[row]), self.grid.size
        if row != self.row:
            self._flush(y)
            self.row = row
        of_rows, of_columns = self.grid.weights
        turn = y % size
        for column, patch in zip(columns, patches):
            left = int(self.grid.xs[column]) - self.left
            weighted = patch * of_rows[row][:, None]
            weighted *= of_columns[column]
            self.sums[:, turn:, left : left + size] += weighted[:, : size - turn]
            self.sums[:, :turn, left : left + size] += weighted[:, size - turn :]

    def finish(self) -> None:
        self._flush(self.stop)

    def _flush(self, y: int) -> None:
        """Writes and forgets the rows above `y`; those that are not of this band are only forgotten."""
        size = self.grid.size
        first = int(self.grid.ys[self.row]) if self.row >= 0 else y
        for start in range(first, min(y, first + size), _ROWS):
            rows = np.arange(start, min(start + _ROWS, y, first + size))
            if self.grid.tissue_rows(int(rows[0]), int(rows[-1]) + 1):
                mine = rows[(rows >= self.top) & (rows < min(self.stop, self.grid.frame.height))]
                if len(mine):
                    self._write(int(mine[0]), self.sums[:, mine % size])
            self.sums[:, rows % size] = 0

    def _write(self, y: int, sums: np.ndarray) -> None:
        """Rows from `y` on: float32 (planes, h, w)."""
        right = min(self.left + sums.shape[2], self.grid.frame.width)
        sums = sums[:, :, : right - self.left]
        tissue = self.grid.tissue_at(y, y + sums.shape[1])[:, self.left : right]
        tumour = sums[0] if len(sums) == 1 else 1 - sums[0]
        probability = np.clip(tumour * 255 + 0.5, 0, 255).astype(np.uint8) * tissue
        if len(sums) == 1:
            classes = (probability >= self.threshold * 255).astype(np.uint8) * tissue
        else:
            classes = sums.argmax(axis=0).astype(np.uint8) * tissue
        for raster, pixels in ((self.probability, probability), (self.classes, classes)):
            used = np.flatnonzero(pixels.any(axis=0))
            if len(used):
                raster.write(self.left + int(used[0]), y, pixels[:, used[0] : used[-1] + 1])


def predict_band(
    slide: Slide,
    grid: Grid,
    band: tuple[int, int],
    forward: Forward,
    batch_size: int,
    canvas: Canvas,
    advance: Callable[[int], Any],
) -> None:
    """Predicts all patches that have a pixel of the band (pixel rows [first, stop)); `advance` gets their number.

    ReadError: the slide is bad. OutputError: a raster cannot be written.
    """
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as blender:
        reading: deque[tuple[int, np.ndarray, list[Future[np.ndarray]]]] = deque()
        blending: deque[Future[None]] = deque()

        def predict_next() -> None:
            row, columns, patches = reading.popleft()
            probabilities = forward(np.stack([patch.result() for patch in patches]))
            blending.append(blender.submit(canvas.add, row, columns, probabilities))
            if len(blending) > AHEAD:
                blending.popleft().result()
            advance(len(columns))

        try:
            for row, columns in grid.batches(*grid.rows_of(band), batch_size):
                places = [(int(grid.xs[column]), int(grid.ys[row])) for column in columns]
                patches = [readers.submit(read_patch, slide, grid.frame, *at, grid.size) for at in places]
                reading.append((row, columns, patches))
                if len(reading) > AHEAD:
                    predict_next()
            while reading:
                predict_next()
            for blended in blending:
                blended.result()
            canvas.finish()
        finally:
            for *_, patches in reading:
                for patch in patches:
                    patch.cancel()
