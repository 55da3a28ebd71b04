"""Reads what predict.py wrote of a slide, and its label, as pictures of the same pixels."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.truth import checked
from prediction.store import PredictionSettings
from prediction.work import grid_of
from samplers.labels.label import Label, open_label
from samplers.labels.label_map import IGNORED, LabelMap, shows_tumour
from samplers.slides.errors import DataError
from samplers.slides.frame import described_frame
from samplers.slides.slide import Slide
from samplers.slides.stored_slide import slide_name

CELL_UM = 4.0  # side of the pixels in which a whole slide is compared, less than a cell's
MAX_PIXELS = 16 << 20  # of that picture; a larger slide is compared in larger ones
_STRIP_ROWS = 512


@dataclass(frozen=True)
class Maps:
    """Prediction and annotation of a part of a slide, as pictures with square pixels.

    Pixel (column, row) begins at `corner` + `scale` · (column, row) of level 0.
    """

    probability: np.ndarray  # float32 (h, w) that it is a lesion, 0 … 1
    classes: np.ndarray  # uint8 (h, w) of the label, IGNORED where it is not known
    known: np.ndarray  # bool (h, w): the class is known, and the model has looked
    corner: tuple[float, float]  # (x, y) in level-0 pixels
    scale: float  # level-0 pixels per pixel
    spacing: float  # µm/px

    @property
    def annotated(self) -> np.ndarray:
        """Return where a lesion is annotated, of whatever class: bool (h, w)."""
        return shows_tumour(self.classes)

    @property
    def mm2(self) -> float:
        """The area of a pixel."""
        return (self.spacing / 1000) ** 2


class ComparedSlide:
    """A predicted slide and its label (None: it has no lesion), for a `with`.

    Of several classes above 0 the prediction is the probability of any of them. DataError: the slide or its label
    cannot be used, or the probabilities are not those of this slide.
    """

    def __init__(
        self,
        predictions: Path,
        slide: Path,
        label: Path | None,
        label_map: LabelMap,
        settings: PredictionSettings,
    ) -> None:
        path = predictions / f"{slide_name(slide)}_probability.tif"
        said = described_frame(path)
        if said is None:
            raise DataError(f"{path}: does not say its frame, so it was not written by predict.py")
        frame, self.downsample = said
        with ExitStack() as opened:
            self.slide = opened.enter_context(Slide(slide))
            if (frame.width, frame.height) != (self.slide.width, self.slide.height):
                raise DataError(
                    f"{path}: is of a slide of {frame.width} × {frame.height} pixels, but {slide} is "
                    f"{self.slide.width} × {self.slide.height}"
                )
            self.label: Label = opened.enter_context(closing(open_label(label, self.slide, label_map)))
            checked(self.label, say=True)
            self.grid = grid_of(self.slide, settings)
            self._probability = opened.enter_context(Slide(path, kind="label"))
            self._opened = opened.pop_all()

    def __enter__(self) -> ComparedSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def whole(self) -> Maps:
        """Return the whole slide in pixels of about CELL_UM, larger ones if it has more than MAX_PIXELS of them."""
        sizes = self._probability.level_sizes
        level = min(max(0, round(math.log2(CELL_UM / self._spacing(0)))), len(sizes) - 1)
        while level < len(sizes) - 1 and math.prod(sizes[level]) > MAX_PIXELS:
            level += 1
        return self.part(level, 0, 0, *sizes[level])

    def around(self, box: tuple[float, float, float, float], side: int) -> Maps:
        """Return the part of a box (left, top, right, bottom in level-0 pixels) with at most `side` pixels a side.

        A pixel is at least one of the prediction. What of the box is beyond the slide is left out.
        """
        longest = max(box[2] - box[0], box[3] - box[1]) / self.downsample
        level = min(max(0, math.ceil(math.log2(longest / side))), len(self._probability.level_sizes) - 1)
        scale, limits = self.downsample * 2**level, self._probability.level_sizes[level]
        starts = [min(max(0, int(box[axis] / scale)), limits[axis] - 1) for axis in (0, 1)]
        ends = [max(1, min(math.ceil(box[axis + 2] / scale), limits[axis])) for axis in (0, 1)]
        sizes = (max(1, ends[axis] - starts[axis]) for axis in (0, 1))
        return self.part(level, *starts, *sizes)

    def part(self, level: int, x: int, y: int, width: int, height: int) -> Maps:
        """Return a part of a level of the probabilities' pyramid, in its pixels. ReadError: it cannot be decoded."""
        scale = self.downsample * 2**level  # each level halves the one before, see `write_tiff`
        probability = np.empty((height, width), np.float32)
        classes = np.empty((height, width), np.uint8)
        for top in range(0, height, _STRIP_ROWS):
            rows = slice(top, min(top + _STRIP_ROWS, height))
            count = rows.stop - top
            values = self._probability.read_level(x, y + top, width, count, level)
            probability[rows] = values / np.float32(255)
            classes[rows] = self.label.read_at(x * scale, (y + top) * scale, width, count, scale)
        xs, ys = (
            ((np.arange(first, first + size) + 0.5) * 2**level).astype(np.int64)
            for first, size in ((x, width), (y, height))
        )
        known = (classes != IGNORED) & self.grid.predicted_at(xs, ys)
        return Maps(probability, classes, known, (x * scale, y * scale), scale, self._spacing(level))

    def _spacing(self, level: int) -> float:
        return self.slide.spacing * self.downsample * 2**level
