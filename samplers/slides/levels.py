"""Which images of a file are the levels of one pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from samplers.slides.tiff_directory import Page


def levels_of(pages: Sequence[Page], slack: int = 2, from_first: bool = False) -> list[Page]:
    """Return the images that are the levels.

    Level 0 is the largest image: some files begin with a thumbnail or the label. With `from_first` it is the first, as
    some vendors have it. Pyramids are tiled; pages in strips are the scanner's thumbnail, label and macro images. A
    level has level 0's shape to `slack` pixels, for rounding or padding, and the same kind of pixels.
    """
    first = pages[0] if from_first else max(pages, key=lambda page: page.width * page.height)
    levels = [first]
    others = [page for page in first.levels or pages if page is not first and page.tiled]
    for page in sorted(others, key=lambda page: -page.width) if first.tiled else []:
        if _kind(page) == _kind(first) and _is_level(page.size, levels, slack):
            levels.append(page)
    return levels


def downsample_of(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the level-0 pixels per pixel of a level of this size, a whole number if rounding explains the rest."""
    real = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(real))
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size)) else real


def _kind(page: Page) -> tuple[int | str | tuple[int, ...], ...]:
    return page.samples, page.bits, page.number


def _is_level(size: tuple[int, int], levels: list[Page], slack: int) -> bool:
    """Return whether an image is smaller than the last level and of level 0's shape."""
    first, last = levels[0], levels[-1]
    scale = max(first.size) / max(size)
    fits = all(abs(full / scale - part) <= slack for full, part in zip(first.size, size))
    return fits and size[0] < last.width and size[1] < last.height
