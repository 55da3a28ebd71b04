"""The classes of a mask's values, and the values that have none."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from samplers.labels.label_map import LabelMap
from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide

_LOOK_CLOSER = 254  # in the place of the class of a value that may be refused; it may also be a class
_BRIGHT = 128  # a value from here on can be "all" of a mask with two values
_NEAR = 8  # values so little below the largest one are what lossy compression or interpolation makes of it
_MANY = 16  # different values, more than any list of classes that is not named
_NAMED = 12  # values that a message names


class MaskValues:
    """The class of each value of a mask.

    With a label map of numbers each value that occurs must be named, except 0. Without numbers any value but 0 is
    class 1, unless it is the file's "no data", or is among the values that only lossy compression or interpolation
    makes: then all that is near a lesion would be tumour.
    """

    def __init__(self, label_map: LabelMap, mask: Slide) -> None:
        self.name = str(mask.path)
        self.classes = label_map.values()  # uint8 (256,)
        self._named = label_map.named()  # bool (256,)
        self._by_number = not self._named.all()
        if mask.bits == 1 and self._named[255] and not self._named[1]:
            self.classes[1], self._named[1] = (
                self.classes[255],
                True,
            )  # 1 bit is written as 0/1 and shown as 0/255
        if mask.nodata is not None and not self._by_number:
            self._named[mask.nodata] = False
        self._nodata = mask.nodata
        suspect = ~self._named
        if not self._by_number:
            suspect[_BRIGHT - _NEAR : 255] = True
        self._table = np.where(suspect, np.uint8(_LOOK_CLOSER), self.classes)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the classes of uint8 values. Raises ReadError, which names the values that have none."""
        classes = cv2.LUT(values, self._table)
        if not np.any(classes == _LOOK_CLOSER):
            return classes
        reasons = self.reasons(count_values(values))
        if reasons:
            raise ReadError(reasons[0])
        return cv2.LUT(values, self.classes)

    def reasons(self, counts: np.ndarray, where: str = "") -> list[str]:
        """Return the reasons why a mask with these numbers of pixels, int (256,), cannot be used; none if it can.

        `where` says which pixels were counted.
        """
        present = np.flatnonzero(counts)
        unnamed = present[~self._named[present]]
        if len(unnamed):
            listed = _listed(unnamed, counts)
            if not self._by_number:
                return [
                    f'{self.name}: {self._nodata} is "no data" by the file, and occurs: {listed}{where}. Name the '
                    f"values in --label_map, such as 1:1 {self._nodata}:ignore"
                ]
            return [
                f"{self.name}: values that the label map does not name: {listed}{where}. Name each in --label_map, "
                f"such as {unnamed[0]}:1 or {unnamed[0]}:ignore"
            ]
        if self._by_number or not len(present):
            return []
        top = int(present[-1])
        near = present[(present >= top - _NEAR) & (present < top)]
        if (top >= _BRIGHT and len(near)) or len(present) > _MANY:
            return [
                f"{self.name}: has {len(present)} values, as after lossy compression or interpolation: "
                f"{_listed(present, counts)}{where}. Save the mask without both, or name the values in --label_map"
            ]
        return []


def count_values(pixels: np.ndarray) -> np.ndarray:
    """Return how often each value occurs in uint8 (h, w): int (256,). NumPy takes ten times as long."""
    image: Any = np.ascontiguousarray(pixels)
    return np.asarray(cv2.calcHist([image], [0], None, [256], [0, 256])[:, 0], np.int64)


def _listed(values: np.ndarray, counts: np.ndarray) -> str:
    """Return "3 (1,200 pixels), 255 (40,000 pixels), …"."""
    shown = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in values[:_NAMED])
    return shown if len(values) <= _NAMED else f"{shown} and {len(values) - _NAMED} more"
