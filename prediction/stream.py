"""Streams a slide through the model: reads, predicts and blends patches at the same time, strip by strip.

The probabilities of one row of patches are in memory. Pixels that no later patch touches are written to the rasters.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from prediction.grid import Frame, Grid
from prediction.progress import Band, Progress
from prediction.uncertainty import SCALE, entropy_of
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide

READERS = min(4, len(os.sched_getaffinity(0)))  # threads; decoding and OpenCV do not hold Python's lock
AHEAD = 2  # batches that are read while one is predicted, and batches that may wait to be blended
ATTEMPTS = 2  # a network file system may fail once
GLASS = 255  # fills a patch beyond the end of a slide that is smaller than it
_ROUNDING = 0.01  # probabilities in half precision may be this far beyond 0 and 1
_ROWS = 64  # pixel rows that are written at once; a tile has a multiple of them

Forward = Callable[[np.ndarray], np.ndarray]  # uint8 (B, H, W, 3) → float32 (B, planes, H, W)


def read_patch(slide: Slide, frame: Frame, x: int, y: int, size: int) -> np.ndarray:
    """Read uint8 RGB (size, size, 3) from pixel (x, y) of the output on. ReadError: two attempts have failed."""
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
    """Adds up weighted patches, one row of patches after the other, and writes the pixel rows that are finished.

    With two classes (one plane) a pixel is tumour from probability `threshold` on; with more it is of the most probable
    class. Where the progress has rasters for doubt, one more plane holds the standard deviation between models.
    """

    def __init__(self, grid: Grid, band: Band, planes: int, threshold: float, progress: Progress) -> None:
        self.grid, self.threshold, self.progress = grid, threshold, progress
        columns = np.flatnonzero(grid.chosen.any(axis=0))
        self.left = int(grid.xs[columns[0]]) if len(columns) else 0
        right = int(grid.xs[columns[-1]]) + grid.size if len(columns) else 1
        # A ring buffer: row y of the output is row y % size of it.
        planes += progress.doubt is not None
        self.sums = np.zeros((planes, grid.size, right - self.left), np.float32)
        self.row = -1
        self.top, self.stop = band  # only these pixel rows are written

    def add(self, row: int, columns: np.ndarray, patches: np.ndarray) -> None:
        """Add patches of a row: float32 (B, planes, size, size). Rows come in ascending order."""
        y, size = int(self.grid.ys[row]), self.grid.size
        if row != self.row:
            self._flush(y)
            self.progress.note(self.top, min(y, self.stop), last=False)
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
        """Write the rows that are left."""
        self._flush(self.stop)
        self.progress.note(self.top, self.stop, last=True)

    def _flush(self, y: int) -> None:
        """Write the pixel rows above `y` that are in the band, and set all of them to 0."""
        size = self.grid.size
        first = int(self.grid.ys[self.row]) if self.row >= 0 else y
        stop = min(y, first + size)
        cuts = [first, *range((first // _ROWS + 1) * _ROWS, stop, _ROWS), stop]  # at the rows of the tiles
        for start, end in pairwise(cuts) if first < stop else ():
            rows = np.arange(start, end)
            if self.grid.tissue_rows(int(rows[0]), int(rows[-1]) + 1):
                mine = rows[(rows >= self.top) & (rows < min(self.stop, self.grid.frame.height))]
                if len(mine):
                    self._write(int(mine[0]), self.sums[:, mine % size])
            self.sums[:, rows % size] = 0

    def _write(self, y: int, sums: np.ndarray) -> None:
        """Write the pixel rows from `y` on, whose blended probabilities are float32 (planes, h, w)."""
        right = min(self.left + sums.shape[2], self.grid.frame.width)
        sums = sums[:, :, : right - self.left]
        deviation = None
        if self.progress.doubt is not None:
            sums, deviation = sums[:-1], sums[-1]
        tissue = self.grid.tissue_at(y, y + sums.shape[1])[:, self.left : right]
        tumour = sums[0] if len(sums) == 1 else 1 - sums[0]
        probability = np.clip(tumour * 255 + 0.5, 0, 255).astype(np.uint8) * tissue
        if len(sums) == 1:
            classes = (probability >= self.threshold * 255).astype(np.uint8) * tissue
        else:
            classes = sums.argmax(axis=0).astype(np.uint8) * tissue
        self.progress.probability.write(self.left, y, probability)
        self.progress.classes.write(self.left, y, classes)
        if self.progress.doubt is not None and deviation is not None:
            entropy = np.clip(entropy_of(sums) * 255 + 0.5, 0, 255).astype(np.uint8) * tissue
            self.progress.doubt.entropy.write(self.left, y, entropy)
            scaled = np.clip(deviation * SCALE + 0.5, 0, 255).astype(np.uint8) * tissue
            self.progress.doubt.deviation.write(self.left, y, scaled)


def predict_band(
    slide: Slide,
    grid: Grid,
    band: Band,
    forward: Forward,
    batch_size: int,
    canvas: Canvas,
    advance: Callable[[int], Any],
) -> None:
    """Predict all patches that contain a pixel of the band (pixel rows [first, stop)).

    Calls `advance` with the number of patches of each batch. ReadError: the slide cannot be read. DataError: the model
    does not give probabilities on it, NaN say. OutputError: a raster cannot be written.
    """
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as blender:
        reading: deque[tuple[int, np.ndarray, list[Future[np.ndarray]]]] = deque()
        blending: deque[Future[None]] = deque()

        def predict_next() -> None:
            row, columns, patches = reading.popleft()
            probabilities = forward(np.stack([patch.result() for patch in patches]))
            if not (
                probabilities.min() >= -_ROUNDING and probabilities.max() <= 1 + _ROUNDING
            ):  # NaN is neither
                raise DataError(
                    f"{slide.path}: the model's output is no probability (between {probabilities.min():g} and "
                    f"{probabilities.max():g}) at pixel {grid.xs[columns[0]]}, {grid.ys[row]}"
                )
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
