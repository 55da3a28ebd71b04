"""Reads the slides and labels of a sampler: keeps a bounded number of them open and tries failed reads again."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from samplers.labels.label import Label, open_label
from samplers.labels.label_map import IGNORED, shows_tumour
from samplers.pairs.pairing import SlidePair, map_of
from samplers.patches import SamplerConfig
from samplers.slides.cache import BoundedCache
from samplers.slides.errors import DataError
from samplers.slides.part import Part
from samplers.slides.patch_geometry import patch_geometry
from samplers.slides.slide import Slide
from samplers.tissue import least_side, tissue_mask
from utils.failures import reason_of

# That open slides and labels may take: a TIFF less than 0.1 MB, 0.1 kB for each point of outlines.
MAX_BYTES = 256 << 20
MAX_THUMBNAIL = 4096  # pixels of the longer side, for slides without a pyramid

T = TypeVar("T")


class BadSlideError(Exception):
    """A slide that failed twice in a row. The sampler draws from another one."""

    def __init__(self, pair: SlidePair, reason: str) -> None:
        super().__init__(f"{pair.name}: {reason}")
        self.pair, self.reason = pair, reason

    def __reduce__(self) -> tuple[type[BadSlideError], tuple[SlidePair, str]]:
        return type(self), (self.pair, self.reason)  # it also comes from other processes


class OpenPair:
    """An open slide with its label, and the geometry of the patches that are cut from it (`PatchGeometry`).

    Raises DataError if a file cannot be opened or the slide is smaller than a patch.
    """

    def __init__(self, pair: SlidePair, config: SamplerConfig) -> None:
        self.pair = pair
        self.img_size = config.img_size
        self.label_map = label_map = map_of(pair, config.label_map)
        # The smallest share of a patch that must be known, 0 where everything is.
        self.min_known = config.min_known if pair.label is not None and label_map.ignores else 0.0
        self.slide = Slide(pair.slide)
        try:
            geometry = patch_geometry(self.slide, config.img_size, config.resolution)
            self.spacing, self.downsample, self.size_l0 = geometry
            self.label: Label = open_label(pair.label, self.slide, label_map)
        except BaseException:
            self.slide.close()
            raise

    def read_label(self, x_l0: int, y_l0: int, part: Part | None = None) -> np.ndarray:
        """Return the classes of the patch at a corner in level-0 pixels, or of a part of it: uint8 (H, W)."""
        return self.label.read_at(x_l0, y_l0, self.img_size, self.img_size, self.downsample, part)

    def read_image(self, x_l0: int, y_l0: int, part: Part | None = None) -> np.ndarray:
        """Return the image of the patch at a corner in level-0 pixels, or of a part of it: uint8 RGB (H, W, 3)."""
        if self.downsample == 1:
            part = part or Part(0, self.img_size, 0, self.img_size)
            return self.slide.read(x_l0 + part.left, y_l0 + part.top, part.width, part.height)
        return self.slide.read_at(x_l0, y_l0, self.img_size, self.img_size, self.spacing, part)

    @property
    def held_bytes(self) -> int:
        """The estimated bytes that the open pair keeps in memory."""
        return self.slide.held_bytes + self.label.held_bytes

    def close(self) -> None:
        self.slide.close()
        self.label.close()


def trim_memory() -> None:
    """Return freed memory to the system. glibc would keep it, and the buffers of many reads add up to gigabytes."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if malloc_trim is not None:
        malloc_trim(0)


class PairReader:
    """Opens pairs and reads from them. A read that fails is tried once more with the files opened anew.

    The pairs that were used last stay open, as many as MAX_BYTES holds.
    """

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self._open: BoundedCache[SlidePair, OpenPair] = BoundedCache(MAX_BYTES)
        self._geometry: dict[SlidePair, tuple[int, int, int]] = {}

    def read(self, pair: SlidePair, function: Callable[[OpenPair], T]) -> T:
        """Return function(open pair). Raises BadSlideError if opening or reading failed twice, whatever the error."""
        for _ in range(2):
            try:
                opened = self._opened(pair)
                result = function(opened)
                self._keep(pair, opened)  # it may hold more now
                return result
            except Exception as error:
                self._close(pair)
                failure = error
        reason = reason_of(failure, f"reading of {pair.slide}", (DataError, OSError))
        raise BadSlideError(pair, reason) from failure

    def _opened(self, pair: SlidePair) -> OpenPair:
        opened = self._open.get(pair)
        if opened is None:
            opened = OpenPair(pair, self.config)
            self._keep(pair, opened)
        return opened

    def _keep(self, pair: SlidePair, opened: OpenPair) -> None:
        for other in self._open.put(pair, opened, opened.held_bytes):
            other.close()

    def _close(self, pair: SlidePair) -> None:
        opened = self._open.pop(pair)
        if opened is not None:
            opened.close()

    def geometry(self, pair: SlidePair) -> tuple[int, int, int]:
        """Return the side of a patch and the width and height of the slide, in level-0 pixels. Raises as `read`."""
        if pair not in self._geometry:
            self._geometry[pair] = self.read(pair, lambda o: (o.size_l0, o.slide.width, o.slide.height))
        return self._geometry[pair]

    def close(self) -> None:
        for opened in self._open.clear():
            opened.close()
        trim_memory()


@dataclass(frozen=True)
class Overview:
    """A slide at low magnification. Pixel (x, y) covers `cell` level-0 pixels, beginning at (x, y) · cell."""

    thumbnail: np.ndarray  # uint8 RGB (h, w, 3)
    tissue: np.ndarray  # bool (h, w)
    tumour: np.ndarray  # bool (h, w): a part of the pixel has a class above 0
    known: np.ndarray  # bool (h, w): a part of the pixel has a class that is known
    cell: tuple[float, float]  # (width, height)


def overview(opened: OpenPair, level: int) -> Overview:
    """Return an overview at a level, or at the last one if there are fewer.

    A level with pixels of more than MAX_CELL_UM does not show small pieces of tissue, so a finer one is taken instead.
    An overview has at most 4096 pixels a side.
    """
    thumbnail, tissue, cell = tissue_of(opened.slide, level)
    height, width = tissue.shape
    classes = opened.label.thumbnail(width, height)
    tumour = shows_tumour(classes)
    trim_memory()  # a whole mask was read
    # Annotated areas are tissue, however pale.
    return Overview(thumbnail, tissue | tumour, tumour, classes != IGNORED, cell)


def tissue_of(slide: Slide, level: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Return thumbnail, tissue and cell of an `Overview`. It needs no label."""
    side = max(slide.level_sizes[min(level, len(slide.level_sizes) - 1)])
    side = max(side, least_side(max(slide.width, slide.height) * slide.spacing))
    thumbnail = slide.thumbnail(min(side, MAX_THUMBNAIL))
    height, width = thumbnail.shape[:2]
    cell = (slide.width / width, slide.height / height)
    return thumbnail, tissue_mask(thumbnail, slide.spacing * cell[0]), cell
