"""Mask files: the numbers that they store are classes, so what does not store them exactly is refused.

Accepted are TIFF, PNG and BMP with lossless compression: one band, or equal bands, of whole numbers from 0 to 255. Of
a palette the indices are the classes, and pixels of 1, 2 and 4 bits have the values that are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvips
from PIL import BmpImagePlugin, PngImagePlugin

from samplers.slides import tiff_pages
from samplers.slides.errors import DataError
from samplers.slides.gdal import GdalHandle
from samplers.slides.handle import VipsHandle, open_image
from samplers.slides.levels import Level, levels_of
from samplers.slides.spacing import png_spacing, tiff_spacing
from samplers.slides.tiff_pages import Page

_COLOURS = (
    "the colours of its bands differ. A mask needs one band (or equal ones) whose values are the classes, or a "
    "palette whose indices are; colours do not say which class they are"
)
_SAVE = "Save the mask without loss (TIFF with deflate or LZW, or PNG)"
# All that stores exactly what was written: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard; some WebP.
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, tiff_pages.ZSTD)
_LOSSY_NAMES = {6: "JPEG", 7: "JPEG", 34892: "JPEG", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 34712: "JPEG 2000",
                33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34933: "PNG", 22610: "JPEG XR",
                34934: "JPEG XR"}  # fmt: skip
_STEPS = {1: 255, 2: 85, 4: 17}  # libvips spreads values of so many bits over 0 to 255
_VIPS_BITS = {"uint": (1, 2, 4, 8, 16, 32), "int": (8, 16, 32), "float": (16, 32)}


class MaskFile(NamedTuple):
    """An open mask: its levels, how to open one of them, and what its header says of the values."""

    levels: list[Level]
    spacing: float | None
    open_level: Callable[[Level], Any]  # a handle
    bits: int  # per pixel
    step: int  # by which the values of less than 8 bits are multiplied when they are read
    nodata: int | None  # a value from 1 to 255 that GDAL's tag calls "no data"


def open_mask(path: Path) -> MaskFile:
    """Look at the header of a mask. Raises DataError if its values cannot be classes, or if it cannot be opened."""
    if tiff_pages.is_tiff(path):
        return _open_tiff(path)
    with path.open("rb") as file:
        if file.read(2) == b"BM":
            return _open_plain(path, lambda: _decoded(path, BmpImagePlugin.BmpImageFile), None)
    image = open_image(path, {})
    loader = str(image.get("vips-loader"))
    if not loader.startswith("pngload"):
        kind = loader.removesuffix("_source").removesuffix("load").upper()
        raise DataError(
            f"{path}: is {kind}, which does not keep the values of a mask exactly. {_SAVE}, not from this copy"
        )
    if image.get_typeof("palette"):
        return _open_plain(path, lambda: _decoded(path, PngImagePlugin.PngImageFile), png_spacing(path))
    return _open_plain(path, lambda: open_image(path, {}), png_spacing(path))


def class_values(pixels: np.ndarray, alpha: bool, step: int) -> np.ndarray:
    """Return the values of a mask's pixels, (h, w, bands) in any type, as uint8 (h, w).

    `alpha`: the last band is opacity. `step`: that by which stored values of less than 8 bits are multiplied. Raises
    DataError if there are colours, transparent pixels, or other values than whole numbers from 0 to 255.
    """
    if alpha:
        opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
        if (pixels[:, :, -1] != opaque).any():
            raise DataError(
                f"it has transparent pixels, whose class is not known. {_SAVE} and without transparency"
            )
        pixels = pixels[:, :, :-1]
    values = pixels[:, :, 0]
    for number in range(1, pixels.shape[2]):
        if (pixels[:, :, number] != values).any():
            raise DataError(_COLOURS)
    if values.dtype == np.uint8:
        return values if step == 1 else values // np.uint8(step)
    with np.errstate(invalid="ignore"):
        exact = values.astype(np.uint8)
    wrong = exact != values  # NaN as well
    if wrong.any():
        raise DataError(
            f"it has the value {values[wrong][0]:g} ({values.dtype}). The values of a mask are classes, whole "
            "numbers from 0 to 255"
        )
    return exact


def _open_tiff(path: Path) -> MaskFile:
    pages = tiff_pages.pages_of(path)
    first, levels = levels_of(pages)
    _check_page(path, first)
    alike = sum(page.size == first.size for page in pages)
    if alike > 1:
        raise DataError(
            f"{path}: has {alike} images of {first.width} × {first.height} pixels. A mask is one, whose values are the "
            "classes, not one for each class"
        )
    alpha = len(first.extra) == 1
    gdal = (
        first.photometric == tiff_pages.PALETTE
        or first.compression not in tiff_pages.VIPS_COMPRESSIONS
        or first.bits not in _VIPS_BITS.get(first.number, ())
        or first.separate
    )

    def open_level(level: Level) -> Any:
        if gdal:
            return GdalHandle(path, level.offset, alpha)
        return VipsHandle(open_image(path, level.options), alpha)

    try:
        open_level(levels[0])  # a file that cannot be opened is refused at once
    except RuntimeError as error:  # GDAL's
        raise DataError(f"{path}: {error}") from error
    bits, step = (8, 1) if gdal else (first.bits, _STEPS.get(first.bits, 1))
    return MaskFile(levels, tiff_spacing(pages, first), open_level, bits, step, _nodata(first))


def _nodata(page: Page) -> int | None:
    try:
        value = float(page.nodata or "0")
    except ValueError:
        return None
    return int(value) if value in range(1, 256) else None


def _check_page(path: Path, page: Page) -> None:
    """Raise DataError if the header says that the values cannot be classes."""
    compression = page.compression
    webp = compression == tiff_pages.WEBP and tiff_pages.webp_is_lossless(path)
    if compression not in _LOSSLESS and not webp:
        name = _LOSSY_NAMES.get(compression, f"method {compression}")
        raise DataError(
            f"{path}: is compressed with {name}, after which values are there that nobody painted. {_SAVE}, "
            "not from this copy"
        )
    if page.photometric == tiff_pages.MIN_IS_WHITE:
        raise DataError(
            f"{path}: says that 0 is white (MinIsWhite), so that its values can mean one thing or the opposite. Save "
            "it as MinIsBlack (tifffile: photometric='minisblack')"
        )
    if page.photometric not in (tiff_pages.MIN_IS_BLACK, tiff_pages.RGB, tiff_pages.PALETTE):
        raise DataError(f"{path}: has colours (photometric {page.photometric}), but {_COLOURS[4:]}")
    if page.number == "complex":
        raise DataError(
            f"{path}: has complex numbers. The values of a mask are classes, whole numbers from 0 to 255"
        )


def _open_plain(path: Path, opener: Callable[[], Any], spacing: float | None) -> MaskFile:
    image = opener()
    bits = image.get("bits-per-sample") if image.get_typeof("bits-per-sample") else 8
    level = Level({}, image.width, image.height, None)
    alpha = image.bands in (2, 4)
    return MaskFile([level], spacing, lambda _: VipsHandle(opener(), alpha), bits, _STEPS.get(bits, 1), None)


def _decoded(path: Path, plugin: Any) -> Any:
    """Return a picture as Pillow decodes it, of a palette the indices, as an image of libvips."""
    try:
        with plugin(str(path)) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return pyvips.Image.new_from_array(np.ascontiguousarray(pixels, np.uint8))
