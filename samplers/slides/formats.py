"""The contents of a slide file: the library that reads it, its pyramid levels and its spacing.

libvips reads tiled JPEG about three times as fast as OpenSlide, so it reads all formats that it reads correctly.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import openslide

from samplers.slides import tiff_pages
from samplers.slides.errors import DataError
from samplers.slides.handle import open_image
from samplers.slides.levels import Level, downsample_of, levels_of
from samplers.slides.spacing import plausible, png_spacing, tiff_spacing
from samplers.slides.tiff_pages import Page
from samplers.slides.vips_errors import vips_call

__all__ = ["downsample_of"]  # evaluation/ takes it from here

log = logging.getLogger(__name__)

# Formats that libvips reads correctly (None: OpenSlide does not know the format, for example PNG). Files of other
# vendors are often TIFF as well, but with overlapping tiles, several scenes or giant JPEG strips.
VIPS_VENDORS: tuple[str | None, ...] = (None, "generic-tiff", "aperio", "philips", "trestle")

_JPEG_2000 = (33003, 33005)  # Aperio's TIFF compressions


class NotForVipsError(DataError):
    """A file that only OpenSlide may read."""


class SlideFile(NamedTuple):
    """The levels of a slide, its spacing in µm/px (None: not known), and whether libvips reads it, else OpenSlide."""

    levels: list[Level]
    spacing: float | None
    by_vips: bool
    extra_band: bool = False  # that has no meaning


def vendor_of(path: Path) -> str | None:
    """Return OpenSlide's name of the format, None if OpenSlide does not know it."""
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return vendor


def rgb_image(path: Path, image: Any, extra_band: bool) -> Any:
    """Return an image of libvips as 8-bit RGB or grey, transparent pixels white. Raises DataError if it is neither.

    `extra_band`: the last band has no meaning; otherwise it is opacity.
    """
    if image.format != "uchar":
        raise DataError(f"{path}: has {image.format} pixels, 8 bits per channel are needed")
    colours = {"srgb": 3, "b-w": 1}.get(image.interpretation, 0)
    if not colours or image.bands - colours not in (0, 1):
        raise DataError(f"{path}: has {image.bands} bands ({image.interpretation}), RGB is needed")
    if image.bands == colours:
        return image
    if extra_band:
        return vips_call("extract_band", image, 0, n=colours)
    return vips_call("flatten", image, background=255)


def vips_slide(path: Path, vendor: str | None) -> SlideFile:
    """Return what a slide holds that libvips reads, perhaps with OpenSlide's help.

    Raises DataError if it is no RGB, NotForVipsError if OpenSlide may read it.
    """
    if tiff_pages.is_tiff(path):
        return _tiff_slide(path, vendor)
    image = rgb_image(path, open_image(path, {}), extra_band=False)
    loader = str(image.get("vips-loader"))
    spacing = None
    if loader.startswith("pngload"):
        spacing = png_spacing(path)
    elif loader.startswith("jpegload") and image.xres > 0:
        spacing = plausible(1000 / image.xres)  # xres: pixels per millimetre
    _warn_of_grey(path, image.bands)
    return SlideFile([Level({}, image.width, image.height, None)], spacing, by_vips=True)


def openslide_levels(slide: openslide.OpenSlide) -> tuple[list[Level], float | None]:
    """Return the levels as OpenSlide finds them, and the spacing in µm/px if known."""
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    levels = [Level({}, width, height, None) for width, height in slide.level_dimensions]
    return levels, plausible(mpp) if mpp else None


def bounds_origin(slide: openslide.OpenSlide) -> tuple[int, int]:
    """Return where the scanned part of level 0 begins (x, y), to which QuPath crops the slide."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
    x, y = (int(slide.properties.get(name, 0)) for name in names)
    return x, y


def _tiff_slide(path: Path, vendor: str | None) -> SlideFile:
    pages = tiff_pages.pages_of(path)
    # Philips' pages are padded to whole tiles. The others' first image is level 0 by definition.
    slack = max(pages[0].tile or (2,)) if vendor == "philips" else 2
    first, levels = levels_of(pages, slack, from_first=vendor not in (None, "generic-tiff"))
    if first.samples == 1 and any(page is not first and page.size == first.size for page in pages):
        raise DataError(f"{path}: has one colour per page, RGB is needed")
    spacing = tiff_spacing(pages, first)
    if vendor is not None and not _vips_decodes(first):
        if (
            first.bits != 8
            or first.samples != 3
            or first.photometric not in (tiff_pages.RGB, tiff_pages.YCBCR)
        ):
            raise DataError(
                f"{path}: has {first.samples} bands of {first.bits} bits, RGB of 8 bits is needed"
            )
        levels, mpp = _levels_by_openslide(path)
        return SlideFile(levels, mpp if spacing is None else spacing, by_vips=False)
    if vendor == "aperio" and first.compression in _JPEG_2000:
        raise NotForVipsError(f"{path}: libvips is built without JPEG 2000")
    extra_band = first.extra == (tiff_pages.UNSPECIFIED,) or (first.samples == 4 and not first.extra)
    try:
        image = open_image(path, first.options)
    except DataError as error:
        raise NotForVipsError(str(error)) from error
    image = rgb_image(path, image, extra_band)
    _warn_of_grey(path, image.bands)
    if vendor == "philips":
        true, spacing = _levels_by_openslide(path)
        if len(true) != len(levels):
            raise NotForVipsError(f"{path}: OpenSlide finds {len(true)} levels, libvips {len(levels)}")
        levels = [level._replace(width=t.width, height=t.height) for level, t in zip(levels, true)]
    return SlideFile(levels, spacing, by_vips=True, extra_band=extra_band)


def _levels_by_openslide(path: Path) -> tuple[list[Level], float | None]:
    try:
        with openslide.OpenSlide(path) as slide:
            return openslide_levels(slide)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


def _vips_decodes(page: Page) -> bool:
    raw_ycbcr = page.photometric == tiff_pages.YCBCR and page.compression not in (
        *(tiff_pages.JPEG, tiff_pages.OLD_JPEG, tiff_pages.WEBP, *_JPEG_2000),
    )
    known = page.compression in (*tiff_pages.VIPS_COMPRESSIONS, *_JPEG_2000)
    return known and not raw_ycbcr and not (page.separate and page.tile)


def _warn_of_grey(path: Path, bands: int) -> None:
    if bands == 1:
        log.warning("%s: has no colours, its grey is taken as red, green and blue alike", path)
