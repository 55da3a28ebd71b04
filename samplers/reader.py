"""The slides and labels of a sampler: a bounded number of them open, failing reads tried again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from samplers.dataset import SlidePair
from samplers.labels import Label, MaskLabel, open_label
from samplers.patches import SamplerConfig
from samplers.slide import DataError, ReadError, Slide, SlideCache
from samplers.tissue import tissue_mask

MAX_OPEN = 128  # opening takes as long as reading a patch; what a slide holds in memory is bounded besides
MAX_THUMBNAIL = 4096  # pixels a side: a slide without a pyramid would be taken whole

T = TypeVar("T")


class BadSlideError(Exception):
    """A slide failed twice in a row; the sampler draws from another one."""

    def __init__(self, pair: SlidePair, reason: str) -> None:
        super().__init__(f"{pair.name}: {reason}")
        self.pair, self.reason = pair, reason


class OpenPair:
    """An open slide with its label, and the geometry of the patches that are cut out of it.

    downsample: level-0 pixels a pixel of the patch; size_l0: side of a patch, whole level-0 pixels.
    DataError: it cannot be opened, or is smaller than a patch.
    """

    def __init__(self, pair: SlidePair, config: SamplerConfig) -> None:
        self.pair = pair
        self.slide = Slide(pair.slide)
        try:
            self.label: Label = open_label(pair.label, self.slide, config.label_map)
        except BaseException:
            self.slide.close()
            raise
        self.spacing = config.resolution or self.slide.spacing
        self.downsample = self.spacing / self.slide.spacing
        self.img_size = config.img_size
        # Rounded up, so that the patch ends inside; 0.1 % is a difference in how the spacing was written.
        self.native = abs(self.downsample - 1) < 0.001
        self.size_l0 = self.img_size if self.native else math.ceil(self.img_size * self.downsample)
        if self.size_l0 > min(self.slide.width, self.slide.height):
            self.close()
            raise DataError(
                f"{pair.slide}: {self.slide.width} × {self.slide.height} pixels are less than a patch "
                f"of {self.size_l0} × {self.size_l0}"
            )

    def read_label(self, x_l0: int, y_l0: int) -> np.ndarray:
        """Classes of the patch at a corner: uint8 (H, W)."""
        downsample = 1.0 if self.native else self.downsample
        return self.label.read_at(x_l0, y_l0, self.img_size, self.img_size, downsample)

    def read_image(self, x_l0: int, y_l0: int) -> np.ndarray:
        """The patch at a corner: uint8 RGB (H, W, 3)."""
        if self.native:
            return self.slide.read(x_l0, y_l0, self.img_size, self.img_size)
        return self.slide.read_at(x_l0, y_l0, self.img_size, self.img_size, self.spacing)

    @property
    def held_bytes(self) -> int:
        """About what the pair keeps in memory (samplers.slide.SlideCache bounds it)."""
        mask = self.label.mask.held_bytes if isinstance(self.label, MaskLabel) else 0
        return self.slide.held_bytes + self.label.held_bytes + mask

    def close(self) -> None:
        self.slide.close()
        self.label.close()


class PairReader:
    """Opens pairs and reads from them; what fails is tried once more with the files opened anew."""

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self._cache = SlideCache(MAX_OPEN)
        self._geometry: dict[SlidePair, tuple[int, int, int]] = {}

    def read(self, pair: SlidePair, function: Callable[[OpenPair], T]) -> T:
        """function(open pair). BadSlideError: opening or reading failed twice."""
        for attempt in (1, 2):
            try:
                opened: OpenPair = self._cache.get(pair, lambda key: OpenPair(key, self.config))
                return function(opened)
            except (DataError, ReadError, OSError) as error:
                self._cache.drop(pair)
                if attempt == 2:
                    raise BadSlideError(pair, str(error)) from error
        raise AssertionError("not reached")

    def geometry(self, pair: SlidePair) -> tuple[int, int, int]:
        """(side of a patch, width and height of the slide) in level-0 pixels. BadSlideError as `read`."""
        if pair not in self._geometry:
            self._geometry[pair] = self.read(pair, lambda o: (o.size_l0, o.slide.width, o.slide.height))
        return self._geometry[pair]

    def close(self) -> None:
        self._cache.close()


@dataclass(frozen=True)
class Overview:
    """A slide at low magnification: pixel (x, y) covers `cell` level-0 pixels from (x, y) · cell on."""

    thumbnail: np.ndarray  # uint8 RGB (h, w, 3)
    tissue: np.ndarray  # bool (h, w)
    tumour: np.ndarray  # bool (h, w): any part of the pixel has a class above 0
    cell: tuple[float, float]  # (width, height)


def overview(opened: OpenPair, level: int) -> Overview:
    """The slide at a level, or at its last one if it has fewer, and at no more than 4096 pixels a side."""
    slide = opened.slide
    side = max(slide.level_sizes[min(level, len(slide.level_sizes) - 1)])
    thumbnail = slide.thumbnail(min(side, MAX_THUMBNAIL))
    height, width = thumbnail.shape[:2]
    cell = (slide.width / width, slide.height / height)
    tumour = opened.label.thumbnail(width, height) > 0
    # What is annotated is tissue, however pale.
    tissue = tissue_mask(thumbnail, slide.spacing * cell[0]) | tumour
    return Overview(thumbnail, tissue, tumour, cell)
