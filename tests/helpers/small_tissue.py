"""Slides of full size with little tissue, as of biopsies: tiles of glass are missing in the file, but for the first."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import tifffile

WIDTH, HEIGHT = 97_280, 215_040
TILE = 512
GLASS, STAIN = 255.0, np.array((190.0, 110.0, 170.0))

Box = tuple[int, int, int, int]  # left, top, right, bottom in level-0 pixels


def write_small_tissue(
    path: Path, pieces: Sequence[Box], spacing: float = 0.25, shrinks: Sequence[int] = (1, 16, 128)
) -> Path:
    """Write a slide of 97,280 × 215,040 pixels with these pieces of tissue, and return `path`.

    A pixel of the levels 1/shrink is the mean of what it covers.
    """
    grain = np.tile(np.random.default_rng(0).integers(-60, 60, (64, 64, 1)), (TILE // 64, TILE // 64, 1))

    @cache
    def tile(shrink: int, parts: tuple[Box, ...]) -> bytes:
        """Return a deflated tile; `parts` are counted from its corner."""
        share = np.zeros((TILE, TILE))
        starts = np.arange(TILE) * shrink
        for left, top, right, bottom in parts:
            xs, ys = (
                np.clip(np.minimum(starts + shrink, end) - np.maximum(starts, begin), 0, None) / shrink
                for begin, end in ((left, right), (top, bottom))
            )
            share += np.outer(ys, xs)
        pixels = GLASS + share[..., None] * (STAIN + grain / shrink - GLASS)
        return zlib.compress(pixels.astype(np.uint8).data, 1)

    def tiles(shrink: int) -> Iterator[bytes]:
        side = TILE * shrink
        for top in range(0, HEIGHT, side):
            for left in range(0, WIDTH, side):
                parts = tuple(
                    (max(0, box[0] - left), max(0, box[1] - top), min(side, box[2] - left), min(side, box[3] - top))
                    for box in pieces
                    if box[0] < left + side and box[1] < top + side and box[2] > left and box[3] > top
                )  # fmt: skip
                yield tile(shrink, parts) if parts or not (left or top) else b""

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for shrink in shrinks:
            tiff.write(
                tiles(shrink), shape=(HEIGHT // shrink, WIDTH // shrink, 3), dtype=np.uint8, tile=(TILE, TILE),
                photometric="rgb", compression="zlib", resolution=(1e4 / spacing / shrink,) * 2,
                resolutionunit="CENTIMETER", subfiletype=1 if shrink > 1 else 0, metadata=None,
            )  # fmt: skip
    return path
