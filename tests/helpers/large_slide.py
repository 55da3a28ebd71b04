"""A large slide most of which was never scanned, and the memory that predicting it takes.

    python -m tests.helpers.large_slide OPTIONS OF PREDICT.PY

The last word on stdout is the peak RSS in GB.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from predict import main

TILE = 512


def write_sparse(path: Path, side: int) -> Path:
    """Write a slide of side² pixels of 0.25 µm, with levels of 1/8 and 1/64. Return `path`.

    It has islands of tissue with a lesion each; the tiles between them are missing in the file.
    """
    rng = np.random.default_rng(0)
    tissue = (rng.integers(0, 110, (TILE, TILE, 3)) + np.array([120, 40, 110])).astype(np.uint8)
    lesion = tissue.copy()
    lesion[..., 0] = 255

    def tiles(shrink: int) -> Iterator[bytes | None]:
        count = -(-(side // shrink) // TILE)
        for row in range(count):
            for column in range(count):
                # There is an island of 4096² every 49,152 pixels, and its middle half is lesion.
                y, x = (place * TILE * shrink % 49_152 for place in (row, column))
                if shrink == 1:
                    found = lesion if min(x, y) >= 1024 and max(x, y) < 3072 else tissue
                    yield found if max(x, y) < 4096 else None
                else:  # a tile is larger than an island: pixel by pixel
                    ys, xs = (
                        (np.arange(TILE) + place * TILE) * shrink % 49_152 < 4096 for place in (row, column)
                    )
                    inside = ys[:, None] & xs
                    yield np.where(inside[..., None], tissue, 255).astype(np.uint8) if inside.any() else None

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for shrink in (1, 8, 64):
            shape = (side // shrink, side // shrink, 3)
            tiff.write(
                tiles(shrink), shape=shape, dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="zlib", resolution=(40_000 / shrink,) * 2, resolutionunit="CENTIMETER",
                subfiletype=1 if shrink > 1 else 0, metadata=None,
            )  # fmt: skip
    return path


if __name__ == "__main__":
    code = main(sys.argv[1:])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
    sys.exit(code)
