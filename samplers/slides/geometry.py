"""The size of a patch on a slide: used by the check of the slides and by the reader, so that both agree."""

from __future__ import annotations

import math
from typing import NamedTuple

SAME_SPACING = 0.001  # a relative difference up to this is one of how the spacing was written


class PatchGeometry(NamedTuple):
    """The downsample and the size of a patch on a slide."""

    downsample: float  # level-0 pixels per pixel of the patch; exactly 1.0 if the patch is of level 0
    size_l0: int  # side of the patch in level-0 pixels, rounded up so that the patch ends inside of it

    def fits(self, width: int, height: int) -> bool:
        """Return whether a slide of this size at level 0 holds a patch."""
        return self.size_l0 <= min(width, height)


def patch_geometry(img_size: int, resolution: float | None, slide_spacing: float) -> PatchGeometry:
    """Return the geometry of patches of `img_size` pixels and `resolution` µm/px on a slide.

    `resolution` None means level 0; `slide_spacing` is the slide's at level 0 in µm/px.
    """
    downsample = 1.0 if resolution is None else resolution / slide_spacing
    if abs(downsample - 1) < SAME_SPACING:
        return PatchGeometry(1.0, img_size)
    return PatchGeometry(downsample, math.ceil(img_size * downsample))
