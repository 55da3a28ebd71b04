"""The interface of all labels.

Positions are in level-0 pixels of the *slide*, sizes in pixels at a downsample of it, values are classes (uint8), or
IGNORED where the class is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from samplers.slides.part import Part
from samplers.slides.slide import inside

# Measured: shapely's index of a polygon's edges, by which points inside of it are found, and the polygon of a mask.
_BYTES_PER_POINT, _BYTES_PER_ANNOTATION = 40, 200


@dataclass(frozen=True)
class Annotation:
    """The visible part of an annotated area: inside the slide and not painted over by another class."""

    polygon: shapely.Geometry  # Polygon or MultiPolygon, in level-0 pixels
    value: int  # class
    group: str  # for a mask its class


class Label:
    """The label of a slide. The base class is the label of a slide without tumour: all pixels are class 0."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size  # (width, height) of the slide at level 0
        self.left_out: list[str] = []  # annotations of the file that are not used, with the reasons
        self.unmapped = ""  # a line on the groups of the file that the label map does not name
        self.groups: dict[str, int] = {}  # annotations of each group in the file, used or not
        self._annotations: list[Annotation] | None = None  # once they are found
        self._bytes_of_annotations = 0

    def read_at(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float, part: Part | None = None
    ) -> np.ndarray:
        """Return the classes of a region or a part of it: uint8 (height, width), pixels of `downsample` level-0 ones.

        A pixel has the class at its centre, (x_l0 + (i + 0.5) · downsample, …). Raises ValueError if the region is
        not inside the slide, ReadError if a mask cannot be decoded.
        """
        for start, size, limit in ((x_l0, width, self.size[0]), (y_l0, height, self.size[1])):
            inside(start / downsample, size, int(np.ceil(limit / downsample)), "label")
        return self._read(x_l0, y_l0, width, height, downsample, part or Part(0, height, 0, width))

    def _read(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float, part: Part
    ) -> np.ndarray:
        return np.zeros((part.height, part.width), np.uint8)

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        """Return the classes of the whole slide: uint8 (height, width).

        A pixel shows the largest class that covers any part of it, so that no lesion is too small to be seen. It shows
        IGNORED only if no part of it has a known class.
        """
        return np.zeros((height, width), np.uint8)

    def annotations(self) -> list[Annotation]:
        """Return all annotations whose class is known, in the order of painting. They are found once."""
        if self._annotations is None:
            self._annotations = self._find_annotations()
            points = sum(shapely.get_num_coordinates([found.polygon for found in self._annotations]))
            self._bytes_of_annotations = int(
                _BYTES_PER_POINT * points + _BYTES_PER_ANNOTATION * len(self._annotations)
            )
        return self._annotations

    def _find_annotations(self) -> list[Annotation]:
        return []

    @property
    def remarks(self) -> list[str]:
        """Return one line for each thing of the file that is not used."""
        return [*self.left_out, *([self.unmapped] if self.unmapped else [])]

    def areas(self) -> dict[int, float] | None:
        """Return the area of each class that occurs, also of IGNORED, in level-0 pixels; None if it would take long."""
        return {0: float(self.size[0] * self.size[1])}

    @property
    def held_bytes(self) -> int:
        """The estimated bytes that the open label keeps in memory."""
        return self._bytes_of_annotations

    def close(self) -> None:
        """Close the file, if one is open."""
