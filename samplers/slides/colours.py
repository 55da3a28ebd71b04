"""Makes 8-bit RGB of the numbers that a slide stores, or says why that cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from samplers.slides.errors import DataError
from samplers.slides.tiff_directory import (
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    PALETTE,
    PREMULTIPLIED,
    RGB,
    UNSPECIFIED,
    YCBCR,
    Page,
)

_NAMES = {
    MIN_IS_WHITE: "grey",
    MIN_IS_BLACK: "grey",
    RGB: "rgb",
    PALETTE: "palette",
    5: "cmyk",
    YCBCR: "ycbcr",
    8: "lab",
}


def rgb_of_page(path: Path, page: Page) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes RGB, uint8 (h, w, 3), of the numbers of an image of a TIFF file, (h, w, bands).

    Transparent pixels become white; an extra band without a meaning is left out. Raises DataError if it is no RGB.
    """
    grey = page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK)
    if page.number != "uint" or page.bits > 8 or (page.bits < 8 and not grey and page.photometric != PALETTE):
        raise DataError(
            f"{path}: has {page.number} pixels of {page.bits} bits, 8 bits per channel are needed"
        )
    colours = 3 if page.photometric in (RGB, YCBCR) else 1 if grey or page.photometric == PALETTE else 0
    if not colours or page.samples - colours not in (0, 1):
        name = _NAMES.get(page.photometric, f"photometric {page.photometric}")
        raise DataError(f"{path}: has {page.samples} bands ({name}), RGB is needed")
    if page.palette is not None:
        return partial(_of_palette, page.palette)
    # Black and white of each number of a grey image, which may have fewer than 8 bits.
    shown = np.linspace(0, 255, 2**page.bits).round().astype(np.uint8)
    grey_table = shown[::-1] if page.photometric == MIN_IS_WHITE else shown
    extra = page.extra[:1] if page.samples > colours else None
    return partial(_of_bands, colours, extra, grey_table if grey else None)


def rgb_of_picture(pixels: np.ndarray) -> np.ndarray:
    """Return RGB, uint8 (h, w, 3), of a picture of 1 to 4 bands, of which the second or fourth is opacity."""
    colours = 3 if pixels.shape[2] > 2 else 1
    return _of_bands(colours, (2,) if pixels.shape[2] > colours else None, None, pixels)


def _of_bands(
    colours: int, extra: tuple[int, ...] | None, grey_table: np.ndarray | None, pixels: np.ndarray
) -> np.ndarray:
    shown = pixels[:, :, :colours]
    if grey_table is not None:
        shown = grey_table[shown]
    if extra is not None and extra not in ((), (UNSPECIFIED,)):
        alpha = pixels[:, :, -1:].astype(np.uint16)
        if extra == (PREMULTIPLIED,):
            shown = (np.minimum(shown, alpha) + (255 - alpha)).astype(np.uint8)
        else:
            shown = ((shown * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)
    return shown if colours == 3 else cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB)


def _of_palette(palette: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return palette[pixels[:, :, 0]]
