"""The size of a patch on a slide, for the check of the slides and for the reader of the patches alike."""

from __future__ import annotations

import math
from typing import NamedTuple

from samplers.slides.errors import DataError
from samplers.slides.slide import Slide

SAME_SPACING = 0.001  # relative difference below which two spacings are one, written with other digits


class PatchGeometry(NamedTuple):
    """The spacing of a patch's pixels and the part of level 0 that the patch covers."""

    spacing: float  # µm/px
    downsample: float  # level-0 pixels per pixel of the patch; exactly 1 where the patch is level 0 itself
    size_l0: int  # side in level-0 pixels


def patch_geometry(slide: Slide, img_size: int, resolution: float | None) -> PatchGeometry:
    """Return the geometry of patches of `img_size` pixels at `resolution` µm/px; None means level 0.

    Raises DataError if the slide is smaller than a patch.
    """
    spacing = resolution or slide.spacing
    downsample = spacing / slide.spacing
    if abs(downsample - 1) < SAME_SPACING:
        downsample = 1.0
    size_l0 = math.ceil(img_size * downsample)  # rounded up: every pixel that is read lies inside
    if size_l0 > min(slide.width, slide.height):
        raise DataError(
            f"{slide.path}: {slide.width} × {slide.height} pixels are smaller than a patch of "
            f"{size_l0} × {size_l0}"
        )
    return PatchGeometry(spacing, downsample, size_l0)
