"""The contents of a slide file: the library that reads it, its pyramid levels and its spacing.

libvips reads tiled JPEG about three times as fast as OpenSlide, so it reads all formats that it reads correctly.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
import pyvips
import tifffile

from samplers.slides.errors import DataError
from samplers.slides.vips_errors import vips_faults

# Formats that libvips reads correctly (None: OpenSlide does not know the format, for example PNG). Files of other
# vendors are often TIFF as well, but with overlapping tiles, several scenes or giant JPEG strips.
VIPS_VENDORS: tuple[str | None, ...] = (None, "generic-tiff", "aperio", "philips", "trestle")
PLAUSIBLE_SPACING = (0.05, 20.0)  # µm/px; outside, the resolution is for print (72 dpi) or was forgotten

_JPEG_2000 = (33003, 33005)  # Aperio's TIFF compressions
# The errors that tifffile raises for a damaged file.
TIFF_ERRORS = (tifffile.TiffFileError, struct.error, OSError, ValueError, LookupError, TypeError)

# Otherwise libvips would keep files and their tiles after we have closed them.
pyvips.cache_set_max(0)


class Level(NamedTuple):
    """The place of a level in the file and its size in pixels."""

    options: dict[str, int]  # for the libvips loader: the page or the SubIFD
    width: int
    height: int
    tile: tuple[int, int] | None  # (width, height); None: the first read decodes the whole level


def vendor_of(path: Path) -> str | None:
    """Return OpenSlide's name of the format, None if OpenSlide does not know it."""
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return vendor


def vips_image(path: Path, kind: str, options: dict[str, int]) -> Any:
    """Open a level as a libvips image: 8-bit RGB or grey, for a label one band. Raises DataError if it cannot."""
    try:
        # Random access: sequential reading refuses to go back.
        with vips_faults.opening():
            image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error", **options)
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be opened: {one_line(error)}") from error
    if kind == "label":
        return _one_band(image)
    if image.format != "uchar":
        raise DataError(f"{path}: has {image.format} pixels, 8 bits per channel are needed")
    if image.hasalpha():
        image = image.flatten(background=255)
    return image if image.bands in (1, 3) else image.colourspace("srgb")


def _one_band(image: Any) -> Any:
    """Return the values of a mask as one band, of a colour image the largest: grey saved as RGB has equal bands."""
    band = image[0]
    for number in range(1, image.bands - (1 if image.hasalpha() else 0)):
        band = (band > image[number]).ifthenelse(band, image[number])
    return band if band.format == "uchar" else band.cast("uchar")


def vips_levels(path: Path, kind: str, vendor: str | None) -> tuple[list[Level], float | None]:
    """Return the levels of an image that libvips reads, and its spacing in µm/px if known."""
    if vendor == "aperio" and _compression(path) in _JPEG_2000:
        raise DataError(f"{path}: libvips is built without JPEG 2000")
    image = vips_image(path, kind, {})
    levels = [Level({}, image.width, image.height, _tile(image))]
    # Pyramids are tiled; pages in strips are the scanner's thumbnail, label and macro images.
    subifds, pages = _field(image, "n-subifds", 0), _field(image, "n-pages", 1)
    others = [{"subifd": i} for i in range(subifds)] or [{"page": i} for i in range(1, pages)]
    slack = max(_tile(image) or (2,)) if vendor == "philips" else 2  # its pages are padded to whole tiles
    for options in others if levels[0].tile else []:
        page = vips_image(path, kind, options)
        size = (page.width, page.height)
        if kind == "image" and image.bands == 1 and size == (image.width, image.height):
            raise DataError(f"{path}: has one colour per page, RGB is needed")
        if _tile(page) and _is_level(size, levels, slack):
            levels.append(Level(options, *size, _tile(page)))
    spacing = described_spacing(_field(image, "image-description", ""))
    if vendor == "philips":
        with openslide.OpenSlide(path) as slide:
            true, spacing = openslide_levels(slide)
        if len(true) != len(levels):
            raise DataError(f"{path}: OpenSlide finds {len(true)} levels, libvips {len(levels)}")
        levels = [level._replace(width=t.width, height=t.height) for level, t in zip(levels, true)]
    loader = image.get("vips-loader")
    if spacing is None and loader.startswith(("tiffload", "pngload", "jpegload")) and image.xres > 0:
        spacing = _plausible(1000 / image.xres)  # xres: pixels per millimetre
    return levels, spacing


def openslide_levels(slide: openslide.OpenSlide) -> tuple[list[Level], float | None]:
    """Return the levels as OpenSlide finds them, and the spacing in µm/px if known."""
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    levels = [Level({}, width, height, None) for width, height in slide.level_dimensions]
    return levels, _plausible(mpp) if mpp else None


def bounds_origin(slide: openslide.OpenSlide) -> tuple[int, int]:
    """Return where the scanned part of level 0 begins (x, y), to which QuPath crops the slide."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
    x, y = (int(slide.properties.get(name, 0)) for name in names)
    return x, y


def missing_tiles(path: Path, level: Level) -> np.ndarray | None:
    """Return which tiles of a TIFF level are not in the file (0 bytes: never scanned): bool (rows, columns).

    None if the level has no tiles or the file is damaged.
    """
    if level.tile is None:
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[level.options.get("page", 0)]
            if "subifd" in level.options:
                page = page.pages[level.options["subifd"]]
            shape = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
            return np.array(page.databytecounts).reshape(shape) == 0
    except TIFF_ERRORS:
        return None


def _compression(path: Path) -> int:
    try:
        with tifffile.TiffFile(path) as tiff:
            return int(tiff.pages[0].tags["Compression"].value)  # type: ignore[union-attr]
    except TIFF_ERRORS as error:
        raise DataError(f"{path}: cannot be read as TIFF: {error}") from error


def downsample_of(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the level-0 pixels per pixel of a level of this size, a whole number if rounding explains the rest."""
    real = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(real))
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size)) else real


def described_spacing(description: str) -> float | None:
    """Return the spacing in µm/px from Aperio's or OME's image description, None if it has none."""
    aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    ome = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', description)
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', description)
    if not aperio and unit and unit.group(1) not in ("µm", "μm", "um", "&#181;m", "&#xB5;m"):
        return None
    found = aperio or ome
    return _plausible(found.group(1)) if found else None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _plausible(text: str | float) -> float | None:
    """Return the spacing that a file states, None if it is not a number or cannot be a slide's."""
    try:
        spacing = float(text)
    except ValueError:
        return None
    low, high = PLAUSIBLE_SPACING
    return spacing if low <= spacing <= high else None


def _field(image: Any, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _tile(image: Any) -> tuple[int, int] | None:
    width = _field(image, "tile-width", None)
    return width and (width, image.get("tile-height"))


def _is_level(size: tuple[int, int], levels: list[Level], slack: int) -> bool:
    """Return whether a page is smaller than the last level and, to `slack` pixels, of level 0's shape.

    The slack is for rounding or padding.
    """
    first, last = levels[0], levels[-1]
    scale = max(first.width, first.height) / max(size)
    fits = all(abs(full / scale - part) <= slack for full, part in zip((first.width, first.height), size))
    return fits and size[0] < last.width and size[1] < last.height
