"""Opens a slide: chooses what reads it, and finds its levels and its spacing.

TIFFs are read by our own reader, three times as fast as by OpenSlide, if they are of a kind that is known to be laid
out simply; plain pictures by libvips; OME-Zarr by TensorStore; all others by
OpenSlide, DICOM among them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide

from samplers.slides.colours import rgb_of_page, rgb_of_picture
from samplers.slides.dicom import held_bytes, levels_of_folder, refuse_unread, resampled_remark
from samplers.slides.errors import DataError
from samplers.slides.levels import downsample_of, levels_of
from samplers.slides.ome_zarr import ZarrReader
from samplers.slides.openslide_reader import OpenSlideReader
from samplers.slides.plain_reader import PlainReader, loader_of, open_picture
from samplers.slides.spacing import plausible, png_spacing, tiff_spacing
from samplers.slides.stored_file import StoredFile
from samplers.slides.stored_slide import folder_format, require_slide
from samplers.slides.tiff_directory import (
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    RGB,
    YCBCR,
    Page,
    is_tiff,
    read_directory,
)
from samplers.slides.tiff_reader import TiffReader
from samplers.slides.tiff_tile import can_decode

__all__ = ["downsample_of"]  # evaluation/ takes it from here

log = logging.getLogger(__name__)

# Formats whose TIFFs we read (None: OpenSlide does not know the format, for example PNG or a TIFF in strips). Files of
# other vendors are often TIFF as well, but with overlapping tiles, several scenes or giant JPEG strips.
OWN_VENDORS: tuple[str | None, ...] = (None, "generic-tiff", "aperio", "philips", "trestle")

WHITE = np.full(3, 255, np.uint8)  # what was never scanned

Reader = TiffReader | PlainReader | OpenSlideReader | ZarrReader


class SlideFile(NamedTuple):
    """What reads a slide, the sizes of its levels (width, height), and its spacing in µm/px (None: not known)."""

    reader: Reader
    sizes: list[tuple[int, int]]
    spacing: float | None
    origin: tuple[int, int] = (0, 0)  # of QuPath's coordinates
    pages: tuple[Page, ...] = ()  # of a TIFF: all its images
    remarks: tuple[str, ...] = ()  # what may be wrong with it


def open_slide(path: Path) -> SlideFile:
    """Open a slide. Raises DataError if it is no RGB image or cannot be opened."""
    files = require_slide(path)
    if folder_format(path) == "zarr":
        zarr = ZarrReader(path)
        return SlideFile(zarr, zarr.sizes, zarr.spacing)
    if path.is_dir():
        return _dicom(path, files)
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    if vendor not in OWN_VENDORS:
        return _by_openslide(path)
    return _tiff(path, vendor) if is_tiff(path) else _picture(path)


def _by_openslide(path: Path, spacing: float | None = None, pages: tuple[Page, ...] = ()) -> SlideFile:
    reader = OpenSlideReader(path)
    spacing = reader.spacing if spacing is None else spacing
    return SlideFile(reader, reader.sizes, spacing, reader.origin, pages)


def _dicom(folder: Path, files: list[Path]) -> SlideFile:
    levels = levels_of_folder(folder, files)
    reader = OpenSlideReader(folder, levels[0].file, held_bytes(levels))
    try:
        refuse_unread(folder, levels, reader.sizes)
    except DataError:
        reader.close()
        raise
    remark = resampled_remark(folder, levels)
    return SlideFile(reader, reader.sizes, reader.spacing, reader.origin, remarks=(remark,) if remark else ())


def _picture(path: Path) -> SlideFile:
    image = open_picture(path)
    if image.format != "uchar":
        raise DataError(f"{path}: has {image.format} pixels, 8 bits per channel are needed")
    colours = {"srgb": 3, "b-w": 1}.get(image.interpretation, 0)
    if not colours or image.bands - colours not in (0, 1):
        raise DataError(f"{path}: has {image.bands} bands ({image.interpretation}), RGB is needed")
    _warn_of_grey(path, colours)
    spacing = None
    if loader_of(image) == "png":
        spacing = png_spacing(path)
    elif loader_of(image) == "jpeg" and image.xres > 0:
        spacing = plausible(1000 / image.xres)  # xres: pixels per millimetre
    return SlideFile(PlainReader(path, image, rgb_of_picture), [(image.width, image.height)], spacing)


def _tiff(path: Path, vendor: str | None) -> SlideFile:
    file = StoredFile(path)
    pages = tuple(read_directory(file))
    # Philips' pages are padded to whole tiles. The others' first image is level 0 by definition.
    slack = max(pages[0].tile) if vendor == "philips" else 2
    levels = tuple(levels_of(pages, slack, from_first=vendor not in (None, "generic-tiff")))
    first = levels[0]
    if first.samples == 1 and any(page is not first and page.size == first.size for page in pages):
        raise DataError(f"{path}: has one colour per page, RGB is needed")
    spacing = tiff_spacing(pages, first)
    pages, levels = (tuple(page._replace(description="") for page in part) for part in (pages, levels))
    if not all(can_decode(page) for page in levels):
        file.close()
        if vendor is None:
            raise DataError(f"{path}: is compressed by method {first.compression}, which cannot be read here")
        if first.photometric not in (RGB, YCBCR) or (first.bits, first.samples) != (8, 3):
            raise DataError(
                f"{path}: has {first.samples} bands of {first.bits} bits, RGB of 8 bits is needed"
            )
        return _by_openslide(path, spacing, pages)
    reader = TiffReader(file, levels, rgb_of_page(path, first), WHITE)
    _warn_of_grey(path, 1 if first.photometric in (MIN_IS_WHITE, MIN_IS_BLACK) else 3)
    sizes = [page.size for page in levels]
    if vendor == "philips":
        true = OpenSlideReader(path)
        if len(true.sizes) != len(sizes):
            return SlideFile(true, true.sizes, true.spacing, true.origin, pages)
        true.close()
        sizes, spacing = true.sizes, true.spacing
    return SlideFile(reader, sizes, spacing, pages=pages)


def _warn_of_grey(path: Path, colours: int) -> None:
    if colours == 1:
        log.warning("%s: has no colours, its grey is taken as red, green and blue alike", path)
