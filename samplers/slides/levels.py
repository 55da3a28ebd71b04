"""Which images of a file are the levels of one pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from samplers.slides.tiff_pages import Page


class Level(NamedTuple):
    """The place of a level in the file and its size in pixels."""

    options: dict[str, int]  # for the libvips loader: the page or the SubIFD
    width: int
    height: int
    tile: tuple[int, int] | None  # (width, height); None: the first read decodes the whole level
    offset: int = 0  # of its header in a TIFF file


def levels_of(pages: Sequence[Page], slack: int = 2, from_first: bool = False) -> tuple[Page, list[Level]]:
    """Return the image that is level 0, and the levels.

    Level 0 is the largest image: some files begin with a thumbnail or the label. With `from_first` it is the first, as
    some vendors have it. Pyramids are tiled; pages in strips are the scanner's thumbnail, label and macro images. A
    level has level 0's shape to `slack` pixels, for rounding or padding, and the same kind of pixels.
    """
    first = pages[0] if from_first else max(pages, key=lambda page: page.width * page.height)
    levels = [Level(first.options, *first.size, first.tile, first.offset)]
    others = [page for page in first.levels or pages if page is not first and page.tile]
    kind = (first.samples, first.bits, first.number)
    for page in sorted(others, key=lambda page: -page.width) if first.tile else []:
        if (page.samples, page.bits, page.number) == kind and _is_level(page.size, levels, slack):
            levels.append(Level(page.options, *page.size, page.tile, page.offset))
    return first, levels


def downsample_of(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the level-0 pixels per pixel of a level of this size, a whole number if rounding explains the rest."""
    real = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(real))
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size)) else real


def _is_level(size: tuple[int, int], levels: list[Level], slack: int) -> bool:
    """Return whether an image is smaller than the last level and of level 0's shape."""
    first, last = levels[0], levels[-1]
    scale = max(first.width, first.height) / max(size)
    fits = all(abs(full / scale - part) <= slack for full, part in zip((first.width, first.height), size))
    return fits and size[0] < last.width and size[1] < last.height
