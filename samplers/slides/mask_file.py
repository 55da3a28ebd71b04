"""Mask files: the numbers that they store are classes, so what does not store them exactly is refused.

Accepted are TIFF, PNG and BMP with lossless compression: one band, or equal bands, of whole numbers from 0 to 255. Of
a palette the indices are the classes, and pixels of 1, 2 and 4 bits have the values that are stored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvips
from PIL import BmpImagePlugin, PngImagePlugin, TiffImagePlugin

from samplers.slides import tiff_directory
from samplers.slides.errors import DataError
from samplers.slides.levels import levels_of
from samplers.slides.plain_reader import PlainReader, loader_of, open_picture
from samplers.slides.spacing import png_spacing, tiff_spacing
from samplers.slides.stored_file import StoredFile
from samplers.slides.tiff_directory import Page
from samplers.slides.tiff_reader import TiffReader, stored_tiles
from samplers.slides.tiff_tile import can_decode

_COLOURS = (
    "the colours of its bands differ. A mask needs one band (or equal ones) whose values are the classes, or a "
    "palette whose indices are; colours do not say which class they are"
)
_SAVE = "Save the mask without loss (TIFF with deflate or LZW, or PNG)"
# All that stores exactly what was written: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard; some WebP.
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, tiff_directory.ZSTD)
_CCITT = (2, 3, 4)  # for one bit per pixel
_LOSSY_NAMES = {6: "JPEG", 7: "JPEG", 34892: "JPEG", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 34712: "JPEG 2000",
                33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34933: "PNG", 22610: "JPEG XR",
                34934: "JPEG XR"}  # fmt: skip
_STEPS = {1: 255, 2: 85, 4: 17}  # libvips spreads values of so many bits over 0 to 255

_UNKNOWN = np.zeros((), np.uint8)  # the value where a tile is not in the file


class MaskFile(NamedTuple):
    """What reads a mask, the sizes of its levels (width, height), and what its header says of the values."""

    reader: TiffReader | PlainReader
    sizes: list[tuple[int, int]]
    spacing: float | None
    bits: int = 8  # per pixel
    nodata: int | None = None  # a value from 1 to 255 that GDAL's tag calls "no data"
    pages: tuple[Page, ...] = ()  # of a TIFF: all its images


def open_mask(path: Path) -> MaskFile:
    """Look at the header of a mask. Raises DataError if its values cannot be classes, or if it cannot be opened."""
    if tiff_directory.is_tiff(path):
        return _open_tiff(path)
    with path.open("rb") as file:
        if file.read(2) == b"BM":
            return _open_plain(path, _decoded(path, BmpImagePlugin.BmpImageFile), None)
    image = open_picture(path)
    if loader_of(image) != "png":
        raise DataError(
            f"{path}: is {loader_of(image).upper()}, which does not keep the values of a mask exactly. {_SAVE}, not "
            "from this copy"
        )
    if image.get_typeof("palette"):
        image = _decoded(path, PngImagePlugin.PngImageFile)
    return _open_plain(path, image, png_spacing(path))


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
    file = StoredFile(path)
    pages = tuple(tiff_directory.read_directory(file))
    levels = levels_of(pages)
    first = levels[0]
    _check_page(file, first)
    alike = sum(page.size == first.size for page in pages)
    if alike > 1:
        raise DataError(
            f"{path}: has {alike} images of {first.width} × {first.height} pixels. A mask is one, whose values are the "
            "classes, not one for each class"
        )
    spacing = tiff_spacing(pages, first)
    if first.compression in _CCITT and len(pages) == 1:  # our codecs do not have it
        plain = _open_plain(path, _decoded(path, TiffImagePlugin.TiffImageFile), spacing)
        return plain._replace(bits=1, pages=pages)
    if not all(can_decode(page) for page in levels):
        raise DataError(
            f"{path}: has {first.number} pixels of {first.bits} bits, compressed by method {first.compression} with "
            f"predictor {first.predictor}, which cannot be read here. {_SAVE}"
        )
    finish = partial(class_values, alpha=len(first.extra) == 1, step=1)
    bits = 8 if first.photometric == tiff_directory.PALETTE else first.bits
    reader = TiffReader(file, levels, finish, _UNKNOWN)
    return MaskFile(reader, [page.size for page in levels], spacing, bits, _nodata(first), pages)


def _nodata(page: Page) -> int | None:
    try:
        value = float(page.nodata or "0")
    except ValueError:
        return None
    return int(value) if value in range(1, 256) else None


def _check_page(file: StoredFile, page: Page) -> None:
    """Raise DataError if the header says that the values cannot be classes."""
    path, compression = file.path, page.compression
    if compression not in _LOSSLESS and not _is_lossless_webp(file, page):
        name = _LOSSY_NAMES.get(compression, f"method {compression}")
        raise DataError(
            f"{path}: is compressed with {name}, after which values are there that nobody painted. {_SAVE}, "
            "not from this copy"
        )
    if page.photometric == tiff_directory.MIN_IS_WHITE:
        raise DataError(
            f"{path}: says that 0 is white (MinIsWhite), so that its values can mean one thing or the opposite. Save "
            "it as MinIsBlack (tifffile: photometric='minisblack')"
        )
    if page.photometric not in (tiff_directory.MIN_IS_BLACK, tiff_directory.RGB, tiff_directory.PALETTE):
        raise DataError(f"{path}: has colours (photometric {page.photometric}), but {_COLOURS[4:]}")
    if page.number == "complex":
        raise DataError(
            f"{path}: has complex numbers. The values of a mask are classes, whole numbers from 0 to 255"
        )


def _is_lossless_webp(file: StoredFile, page: Page) -> bool:
    """Return whether the first tile of an image is compressed with WebP without loss ("VP8L")."""
    if page.compression != tiff_directory.WEBP or page.problem:
        return False
    columns, rows = page.grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    first = next((data for _, data in stored_tiles(file, page, places) if data is not None), None)
    return first is not None and b"VP8L" in bytes(first[:64])


def _open_plain(path: Path, image: Any, spacing: float | None) -> MaskFile:
    bits = image.get("bits-per-sample") if image.get_typeof("bits-per-sample") else 8
    finish = partial(class_values, alpha=image.bands in (2, 4), step=_STEPS.get(bits, 1))
    return MaskFile(PlainReader(path, image, finish), [(image.width, image.height)], spacing, bits)


def _decoded(path: Path, plugin: Any) -> Any:
    """Return a picture as Pillow decodes it, of a palette the indices, as an image of libvips."""
    try:
        with plugin(str(path)) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return pyvips.Image.new_from_array(np.ascontiguousarray(pixels, np.uint8))
