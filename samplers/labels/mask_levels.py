"""Finds the levels of a mask whose values are those of level 0.

Many programs make the levels of a pyramid by averaging: between 0 and 2 there is then 1, which may be another class.
A mask is too large to be compared as a whole, so it is compared at places where its values change.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from samplers.labels.mask_values import count_values
from samplers.slides.slide import Slide

_PLACES = 12  # that are compared
_BLOCK = 1024  # side of a place at level 0
_OVERVIEW = 4 << 20  # pixels of the level in which places are looked for
_MAX_VALUES = 32  # of a window that are compared


class CheckedLevels(NamedTuple):
    """The levels with values of level 0 (first: 0), and how often each value was seen at level 0, int (256,)."""

    exact: tuple[int, ...]
    counts: np.ndarray


def checked_levels(mask: Slide) -> CheckedLevels:
    """Compare the levels of a mask with level 0, once for each file. Raises ReadError if a region cannot be decoded."""
    status = mask.path.stat()
    found = _known(mask.path, status.st_size, status.st_mtime_ns)
    if not found:
        found.append(_compare(mask))
    return found[0]


def too_small(mask: Slide) -> list[int]:
    """Return the levels that may be so small that nobody can tell by the places whether they have level 0's values."""
    side = min(_BLOCK, mask.width, mask.height)
    return [level for level, downsample in enumerate(mask.downsamples) if downsample > side / 2]


@functools.lru_cache(maxsize=4096)
def _known(path: Path, size: int, time: int) -> list[CheckedLevels]:
    """Return the list that holds the result for a file, empty at first."""
    return []


def _compare(mask: Slide) -> CheckedLevels:
    good, bad = {0}, set[int]()
    counts = np.zeros(256, np.int64)
    sides = [min(_BLOCK, side) for side in (mask.width, mask.height)]
    for x, y in _places(mask):
        left, top = (
            int(np.clip(c - s // 2, 0, f - s)) for c, s, f in zip((x, y), sides, (mask.width, mask.height))
        )
        block = mask.read_level(left, top, sides[0], sides[1], 0)
        counts += count_values(block)
        finer, corner, finer_downsample = block, (float(left), float(top)), 1.0
        for level in range(1, len(mask.level_sizes)):
            downsample = mask.downsamples[level]
            first = [int(np.ceil(start / downsample)) for start in (left, top)]
            end = [
                min(int((start + side) / downsample), limit)
                for start, side, limit in zip((left, top), sides, mask.level_sizes[level])
            ]
            if level in bad or first[0] >= end[0] or first[1] >= end[1]:
                continue
            window = mask.read_level(first[0], first[1], end[0] - first[0], end[1] - first[1], level)
            scale = downsample / finer_downsample
            offset = [f * scale - c / finer_downsample for f, c in zip(first, corner)]
            if _has_values_of(window, finer, scale, offset):
                good.add(level)
                finer, finer_downsample = window, downsample
                corner = (first[0] * downsample, first[1] * downsample)
            else:
                bad.add(level)
    return CheckedLevels(tuple(sorted(good - bad)), counts)


def _has_values_of(window: np.ndarray, finer: np.ndarray, scale: float, offset: list[float]) -> bool:
    """Return whether each pixel of a window has a value of the finer pixels that it covers, or of those beside them.

    `scale`: finer pixels per pixel; `offset` (x, y): the window's corner in finer pixels. The margin of half a pixel
    is for levels whose sizes are rounded.
    """
    centres = []
    for start, count, limit in zip(offset, window.shape[::-1], finer.shape[::-1]):
        centres.append(np.clip(start + (np.arange(count) + 0.5) * scale, 0, limit - 1).astype(int))
    grid = np.ix_(*reversed(centres))
    others = window != finer[grid]
    side = int(scale + 2 * max(1.0, scale / 2)) | 1
    for value in np.flatnonzero(np.bincount(window[others]))[:_MAX_VALUES]:
        near = cv2.dilate((finer == value).view(np.uint8), np.ones((side, side), np.uint8))
        if (others & (window == value) & (near[grid] == 0)).any():
            return False
    return True


def _places(mask: Slide) -> list[tuple[float, float]]:
    """Return places, (x, y) in level-0 pixels: where a coarse level changes, its rarest values, and others."""
    rng = np.random.default_rng(0)
    if max(mask.width, mask.height) <= _BLOCK:
        return [(mask.width / 2, mask.height / 2)]
    anywhere = rng.random((_PLACES // 2, 2)) * (mask.width, mask.height)
    levels = [i for i, (w, h) in enumerate(mask.level_sizes) if w * h <= _OVERVIEW]
    if not levels:
        return [tuple(place) for place in rng.random((_PLACES, 2)) * (mask.width, mask.height)]
    level = levels[0]
    view = mask.read_level(0, 0, *mask.level_sizes[level], level)
    chosen = []
    counts = count_values(view)
    rare = [value for value in np.argsort(counts, kind="stable") if counts[value]][:-1]
    for value in rare[: _PLACES // 2]:
        chosen.append(rng.choice(np.argwhere(view == value)))
    edges = np.zeros(view.shape, bool)
    edges[:, 1:] |= view[:, 1:] != view[:, :-1]
    edges[1:] |= view[1:] != view[:-1]
    found = np.argwhere(edges)
    if len(found):
        chosen += list(rng.choice(found, _PLACES // 2))
    scale = mask.downsamples[level]
    places = [((x + 0.5) * scale, (y + 0.5) * scale) for y, x in chosen]
    return places + [tuple(place) for place in anywhere[: max(2, _PLACES - len(places))]]
