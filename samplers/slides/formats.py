"""Finds out which library reads a slide file, its pyramid levels and its spacing.

libvips reads tiled JPEG about three times as fast as OpenSlide, so it reads all formats that it gets right.
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

# Formats that libvips reads right (None: OpenSlide does not know it, such as PNG). Files of other vendors are
# often TIFF as well, but with overlapping tiles, several scenes or giant JPEG strips.
VIPS_VENDORS: tuple[str | None, ...] = (None, "generic-tiff", "aperio", "philips", "trestle")
PLAUSIBLE_SPACING = (0.05, 20.0)  # µm/px; else the resolution is about print (72 dpi), or was forgotten

_JPEG_2000 = (33003, 33005)  # Aperio's TIFF compressions
# What tifffile raises for a damaged file.
TIFF_ERRORS = (tifffile.TiffFileError, struct.error, OSError, ValueError, LookupError, TypeError)

# libvips would keep files and their tiles when we have closed them.
pyvips.cache_set_max(0)


class Level(NamedTuple):
    """The place of a level in the file, and what reading from it takes."""

    options: dict[str, int]  # of the libvips loader: the page or the SubIFD
    width: int
    height: int
    tile: tuple[int, int] | None  # (width, height); None: the first read decodes the whole level


def vendor_of(path: Path) -> str | None:
    """OpenSlide's name of the format; None: it does not know it."""
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return vendor


def vips_image(path: Path, kind: str, options: dict[str, int]) -> Any:
    """Open a level as a libvips image: 8-bit RGB or grey, one band for a label. DataError if it cannot be."""
    try:
        # Random access: sequential reading refuses to go back.
        with vips_faults.opening():
            image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error", **options)
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be opened: {one_line(error)}") from error
    if kind == "label":
        return _one_band(image)
    if image.format != "uchar":
        raise DataError(f"{path}: has {image.format} pixels, 8 bits a channel are needed")
    if image.hasalpha():
        image = image.flatten(background=255)
    return image if image.bands in (1, 3) else image.colourspace("srgb")


def _one_band(image: Any) -> Any:
    """Return a mask's values: the largest band, since a grey mask saved as RGB has its value in each band."""
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
    # Pyramids are tiled: pages in strips are a scanner's thumbnail, label and macro images.
    subifds, pages = _field(image, "n-subifds", 0), _field(image, "n-pages", 1)
    others = [{"subifd": i} for i in range(subifds)] or [{"page": i} for i in range(1, pages)]
    slack = max(_tile(image) or (2,)) if vendor == "philips" else 2  # its pages are padded to whole tiles
    for options in others if levels[0].tile else []:
        page = vips_image(path, kind, options)
        size = (page.width, page.height)
        if kind == "image" and image.bands == 1 and size == (image.width, image.height):
            raise DataError(f"{path}: has one colour a page, RGB is needed")
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
        spacing = _plausible(1000 / image.xres)  # xres: pixels a millimetre
    return levels, spacing


def openslide_levels(slide: openslide.OpenSlide) -> tuple[list[Level], float | None]:
    """Geometry as OpenSlide has it, and the spacing in µm/px if known."""
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    levels = [Level({}, width, height, None) for width, height in slide.level_dimensions]
    return levels, _plausible(float(mpp)) if mpp else None


def missing_tiles(path: Path, level: Level) -> np.ndarray | None:
    """Return which tiles of a TIFF level are not in the file (0 bytes: never scanned): bool (rows, columns).

    None: it has no tiles, or the file is damaged.
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
    """Return how many level-0 pixels a pixel of a level of this size spans; whole if rounding explains the rest."""
    real = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(real))
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size)) else real


def described_spacing(description: str) -> float | None:
    """µm/px out of Aperio's or OME's image description, if it has one."""
    aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    ome = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', description)
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', description)
    if not aperio and unit and unit.group(1) not in ("µm", "μm", "um", "&#181;m", "&#xB5;m"):
        return None
    found = aperio or ome
    return _plausible(float(found.group(1))) if found else None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _plausible(spacing: float) -> float | None:
    low, high = PLAUSIBLE_SPACING
    return spacing if low <= spacing <= high else None


def _field(image: Any, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _tile(image: Any) -> tuple[int, int] | None:
    width = _field(image, "tile-width", None)
    return width and (width, image.get("tile-height"))


def _is_level(size: tuple[int, int], levels: list[Level], slack: int) -> bool:
    """Smaller than the last level, and of level 0's shape to within `slack` pixels of rounding or padding."""
    first, last = levels[0], levels[-1]
    scale = max(first.width, first.height) / max(size)
    fits = all(abs(full / scale - part) <= slack for full, part in zip((first.width, first.height), size))
    return fits and size[0] < last.width and size[1] < last.height
