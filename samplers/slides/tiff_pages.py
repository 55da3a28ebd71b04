"""What the headers of a TIFF file say about each of its images, before any pixel is decoded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from samplers.slides.errors import DataError

# The errors that tifffile raises for a damaged file.
TIFF_ERRORS = (
    tifffile.TiffFileError,
    struct.error,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
)

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # photometric interpretations
UNSPECIFIED = 0  # kind of an extra sample; 1 and 2 are alpha
OLD_JPEG, JPEG, WEBP, ZSTD = 6, 7, 50001, 50000  # compressions
# Compressions that this build of libvips decodes: none, CCITT, LZW, JPEG, deflate, PackBits, WebP.
VIPS_COMPRESSIONS = (1, 2, 3, 4, 5, OLD_JPEG, JPEG, 8, 32773, 32946, WEBP)
_NODATA = 42113  # GDAL's tag
_MICROMETRES = {2: 25_400.0, 3: 10_000.0}  # in the unit of the resolution: inch, centimetre


class Page(NamedTuple):
    """An image of a TIFF file."""

    options: dict[str, int]  # for the libvips loader: the page or the SubIFD
    offset: int  # of its header in the file
    width: int
    height: int
    tile: tuple[int, int] | None  # (width, height); None: strips
    samples: int  # bands, with the extra ones
    extra: tuple[int, ...]  # kinds of the extra samples
    bits: int  # per sample
    number: str  # "uint", "int", "float" or "complex"
    photometric: int
    compression: int
    separate: bool  # each band has tiles of its own
    description: str
    spacing: float | None  # µm/px as the resolution says; None: there is none, or it has no unit
    resolution: float | None  # pixels per unit, whatever the unit
    nodata: str | None  # the value that GDAL calls "no data"
    levels: tuple[Page, ...]  # SubIFDs

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


def pages_of(path: Path) -> list[Page]:
    """Return the images of a TIFF file. Raises DataError if it is no whole TIFF file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [_page(page, {"page": number}) for number, page in enumerate(tiff.pages)]
    except TIFF_ERRORS as error:
        raise DataError(f"{path}: cannot be read as TIFF: {error}") from error
    if not pages:
        raise DataError(f"{path}: cannot be read as TIFF: it has no image")
    if not all(side for page in pages for each in (page, *page.levels) for side in each.size):
        raise DataError(f"{path}: cannot be read as TIFF: one of its images has no pixels")
    return pages


def missing_tiles(path: Path, options: dict[str, int]) -> np.ndarray | None:
    """Return which tiles of an image are not in the file (0 bytes: never scanned): bool (rows, columns).

    `options` are those of the libvips loader. None if the image has no tiles or the file is damaged.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[options.get("page", 0)]
            if "subifd" in options:
                page = page.pages[options["subifd"]]
            if not page.is_tiled:
                return None
            shape = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
            return np.array(page.databytecounts)[: shape[0] * shape[1]].reshape(shape) == 0
    except TIFF_ERRORS:
        return None


def webp_is_lossless(path: Path) -> bool:
    """Return whether the first tile of a TIFF that is compressed with WebP is lossless ("VP8L")."""
    try:
        with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
            page: Any = tiff.pages[0]
            offset = next(o for o, n in zip(page.dataoffsets, page.databytecounts) if n)
            file.seek(offset)
            return b"VP8L" in file.read(64)
    except (*TIFF_ERRORS, StopIteration):
        return False


def _page(page: Any, options: dict[str, int]) -> Page:
    nodata = page.tags.get(_NODATA)
    inner = page.pages or ()
    return Page(
        options=options if options != {"page": 0} else {},
        offset=int(page.offset),
        width=int(page.imagewidth),
        height=int(page.imagelength),
        tile=(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else None,
        samples=int(page.samplesperpixel),
        extra=tuple(int(kind) for kind in page.extrasamples),
        bits=int(np.max(page.bitspersample)),
        number={2: "int", 3: "float", 5: "complex", 6: "complex"}.get(int(np.max(page.sampleformat)), "uint"),
        photometric=int(page.photometric),
        compression=int(page.compression),
        separate=int(page.planarconfig) == 2 and int(page.samplesperpixel) > 1,
        description=str(page.description or ""),
        spacing=_spacing(page),
        resolution=_number(page, "XResolution"),
        nodata=None if nodata is None else str(nodata.value).strip("\0 "),
        levels=tuple(_page(part, {**options, "subifd": number}) for number, part in enumerate(inner)),
    )


def _number(page: Any, name: str) -> float | None:
    tag = page.tags.get(name)
    if tag is None:
        return None
    try:
        top, bottom = tag.value
        return float(top) / float(bottom)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _spacing(page: Any) -> float | None:
    resolution, unit = _number(page, "XResolution"), page.tags.get("ResolutionUnit")
    length = _MICROMETRES.get(
        2 if unit is None else int(unit.value)
    )  # without the tag, the standard says inch
    return length / resolution if length and resolution and resolution > 0 else None
