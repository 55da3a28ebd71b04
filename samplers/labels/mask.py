"""Masks: images of the size of the slide, or shrunk, whose values are classes."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import cv2
import numpy as np

from samplers import kept
from samplers.labels import polygons
from samplers.labels.base import Annotation, Label
from samplers.labels.label_map import IGNORED, LabelMap, shows_tumour
from samplers.labels.mask_levels import checked_levels, too_small
from samplers.labels.mask_values import MaskValues, count_values
from samplers.slides.frame import SlideFrame, mask_scale
from samplers.slides.part import Part
from samplers.slides.slide import Slide

_REGION_SIDE = 2048  # pixels of the longer side of the picture in which a mask's regions are found
_MAX_MASK_PIXELS = 64 << 20  # of the level that a mask's thumbnail is made from
_MAX_STRIP_PIXELS = 16 << 20  # that are read of it at once
_MAX_COUNTED_PIXELS = 16 << 20  # of the level whose values the check of the labels counts


class MaskLabel(Label):
    """A mask image of the whole slide, of its size or shrunk, see `mask_scale`."""

    def __init__(self, path: Path, slide: Slide | SlideFrame, label_map: LabelMap) -> None:
        super().__init__((slide.width, slide.height))
        self.mask = Slide(path, kind="label")
        self._scale = mask_scale(self.mask, slide)  # level-0 pixels of the slide per pixel of the mask
        self._values = MaskValues(label_map, self.mask)
        self._label_map = label_map
        self._unannotated = label_map.unannotated

    def _read(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float, part: Part
    ) -> np.ndarray:
        corner, shrink = (x_l0 / self._scale, y_l0 / self._scale), downsample / self._scale
        level = self.mask.level_at_least(shrink)
        if level:
            level = max(exact for exact in self._exact() if exact <= level)
        return self._values.of(self.mask.read_grid(*corner, width, height, shrink, level, part))

    def _exact(self) -> tuple[int, ...]:
        """Return the levels with the values of level 0. Which they are is looked up when it matters."""
        return checked_levels(self.mask).exact

    def check(self) -> list[str]:
        """Return the reasons why the mask cannot be used; none if it can. Reads only parts of a large mask.

        Adds to `left_out` the levels that are not used. Raises ReadError if a region cannot be decoded.
        """
        exact, counts = checked_levels(self.mask)
        where = " at some places of level 0"
        sizes = self.mask.level_sizes
        small = self._small_level()
        reasons = [] if small == 0 else self._values.reasons(counts, where)
        if small is not None and not reasons:
            pixels = self.mask.read_level(0, 0, *sizes[small], small)
            where = f" at level {small}" if small else ""
            reasons = self._values.reasons(count_values(pixels), where)
        others = sorted(set(range(len(sizes))) - set(exact) - set(too_small(self.mask)))
        if others and not reasons:
            self.left_out.append(
                f"{self.mask.path}: levels with values that level 0 does not have there (averages, probably) are not "
                f"used, which takes longer: {', '.join(map(str, others))}. Make the levels without interpolation"
            )
        return reasons

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        """Return the whole slide, each pixel the largest class that it covers, from a level of at most 64 Mpx.

        If there is no such level, what took long is kept for other processes.
        """
        sizes, exact = self.mask.level_sizes, self._exact()
        small = [level for level in exact if sizes[level][0] * sizes[level][1] <= _MAX_MASK_PIXELS]
        if small:
            return self._thumbnail(width, height, small[0])
        try:
            state = kept.state_of(self.mask.path)
        except OSError:
            return self._thumbnail(width, height, exact[-1])
        name = kept.name_of("mask", state, self.size, (width, height), astuple(self._label_map))
        return kept.kept_array(name, lambda: self._thumbnail(width, height, exact[-1]))

    def _thumbnail(self, width: int, height: int, level: int) -> np.ndarray:
        level_width, level_height = self.mask.level_sizes[level]
        width_px, height_px = min(width, level_width), min(height, level_height)
        columns = np.arange(width_px) * level_width // width_px
        rows = np.arange(height_px) * level_height // height_px
        # How many pixels of the level a pixel of the thumbnail meets at most.
        ratios = (level_height / height_px, level_width / width_px)
        span = tuple(int(ratio) if ratio == int(ratio) else int(ratio) + 2 for ratio in ratios)
        result = np.empty((height_px, width_px), np.uint8)
        step = max(1, int(_MAX_STRIP_PIXELS / level_width / span[0]))
        for first in range(0, height_px, step):
            part = rows[first : first + step]
            bottom = min(int(part[-1]) + span[0], level_height)
            strip = self.mask.read_level(0, int(part[0]), level_width, bottom - int(part[0]), level)
            for number, top in enumerate(part - part[0], first):
                largest = self._largest_of_columns(strip[top : top + span[0]])
                result[number] = _largest(largest, columns, span[1])
        result -= np.uint8(1)
        if (width_px, height_px) == (width, height):
            return result
        return cv2.resize(result, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    def _largest_of_columns(self, values: np.ndarray) -> np.ndarray:
        """Return the largest class + 1 in each column of a mask's values (h, w), 0 if it is IGNORED: uint8 (w,)."""
        empty = self._values.of(np.zeros((1, 1), np.uint8)).ravel() + np.uint8(1)
        found = np.repeat(empty, values.shape[1])
        # Most of a mask is 0, and a look at that takes a tenth of what a look at the classes does.
        used = np.flatnonzero(values.max(axis=0))
        if len(used):
            columns = slice(used[0], used[-1] + 1)
            found[columns] = (self._values.of(values[:, columns]) + np.uint8(1)).max(axis=0)
        return found

    def _find_annotations(self) -> list[Annotation]:
        """Return the regions of the mask, exact to a pixel of a thumbnail of at most 2048 pixels a side.

        Class 0 has regions only where unannotated pixels are ignored: else it is what no region covers.
        """
        shrink = max(1.0, max(self.size) / _REGION_SIDE)
        width, height = (max(1, round(side / shrink)) for side in self.size)
        classes = self.thumbnail(width, height)
        scale = (self.size[0] / width, self.size[1] / height)
        shown = classes != IGNORED if self._unannotated == IGNORED else shows_tumour(classes)
        return [
            Annotation(polygon, value, str(value)) for value, polygon in polygons.trace(classes, shown, scale)
        ]

    def areas(self) -> dict[int, float] | None:
        """Count the pixels of a small level. Raises ReadError if it cannot be decoded."""
        small = self._small_level()
        if small is None:
            return None
        width, height = self.mask.level_sizes[small]
        counts = count_values(self._values.of(self.mask.read_level(0, 0, width, height, small)))
        pixel = self.size[0] * self.size[1] / (width * height)
        return {int(value): float(counts[value] * pixel) for value in np.flatnonzero(counts)}

    def _small_level(self) -> int | None:
        """Return the finest level that has the values of level 0 and is counted in no time; None if none is."""
        sizes = self.mask.level_sizes
        small = [level for level in self._exact() if sizes[level][0] * sizes[level][1] <= _MAX_COUNTED_PIXELS]
        return small[0] if small else None

    @property
    def held_bytes(self) -> int:
        return self.mask.held_bytes + super().held_bytes

    def close(self) -> None:
        self.mask.close()


def _largest(values: np.ndarray, starts: np.ndarray, span: int) -> np.ndarray:
    """Return the largest of uint8 values (w,) in each window of `span` of them, from `starts` (n,) on: uint8 (n,)."""
    padded = np.append(values, np.uint8(0))  # so that a window may end with the last value
    ends = np.minimum(starts + span, len(values))
    return np.maximum.reduceat(padded, np.ravel([starts, ends], order="F"))[::2]
