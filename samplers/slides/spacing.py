"""The spacing (µm per pixel) of an image as its metadata state it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path

from samplers.slides.tiff_directory import Page

PLAUSIBLE_SPACING = (0.05, 20.0)  # µm/px; outside, the resolution is for print (72 dpi) or was forgotten

_NUMBER = r"(-?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?)(?![0-9]|[.,][0-9])"
_MPP = re.compile(rf"\bmpp(?:[ _.-]?x)?[\"']?\s*[:=]\s*[\"']?{_NUMBER}", re.IGNORECASE)
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_IMAGEJ_UNIT = re.compile(r"^unit=(.*)$", re.MULTILINE)
_MICROMETRES = {
    **{"m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "in": 25_400.0},
    **{"inch": 25_400.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "Å": 1e-4},
    **{"nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6, "\\u00B5m": 1.0, "thou": 25.4},
}


def described_spacing(
    description: str, size: tuple[int, int] | None = None, resolution: float | None = None
) -> float | None:
    """Return the spacing in µm/px that an image description states (Aperio's, OME's, ImageJ's), None if there is none.

    An OME file describes several images: the one of this `size` (width, height) counts, else the first. ImageJ states
    the unit here, and the pixels per unit as the resolution.
    """
    for attributes in _pixels_of_ome(description, size):
        text, unit = attributes.get("PhysicalSizeX"), attributes.get("PhysicalSizeXUnit", "um")
        if text is not None:
            return plausible(text, micrometres(unit))
    found = _MPP.search(description)
    if found:
        return plausible(found.group(1))
    unit_line = _IMAGEJ_UNIT.search(description) if description.startswith("ImageJ=") else None
    if unit_line and resolution:
        return plausible(1 / resolution, micrometres(unit_line.group(1)))
    return None


def tiff_spacing(pages: Sequence[Page], first: Page) -> float | None:
    """Return the spacing of level 0, the image `first`, in µm/px: as a description states it, else the resolution."""
    for description in (first.description, pages[0].description if "<OME" in pages[0].description else ""):
        spacing = described_spacing(description, first.size, first.resolution)
        if spacing is not None:
            return spacing
    return None if first.spacing is None else plausible(first.spacing)


def plausible(text: str | float, scale: float | None = 1.0) -> float | None:
    """Return the spacing that a file states, None if it is not a number or cannot be a slide's.

    `scale` is µm in its unit, None an unknown unit. In some locales there is a decimal comma.
    """
    try:
        spacing = float(text.replace(",", ".") if isinstance(text, str) else text) * (scale or math.nan)
    except ValueError:
        return None
    low, high = PLAUSIBLE_SPACING
    return spacing if low <= spacing <= high else None


def micrometres(unit: str) -> float | None:
    """Return a unit in µm, None if it is none of length ("pixel").

    "µm" is the only unit with a letter outside of ASCII before an m. Files have it in many encodings.
    """
    text = unit.strip()
    return 1.0 if re.fullmatch(r"[^\x00-\x7f]+m", text) else _MICROMETRES.get(text)


def png_spacing(path: Path) -> float | None:
    """Return the spacing of a PNG in µm/px, None if it states none.

    libvips takes a resolution without a unit as one per millimetre.
    """
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"pHYs":
                per_metre, unit = int.from_bytes(file.read(4), "big"), file.read(5)[-1:]
                return plausible(1e6 / per_metre) if per_metre and unit == b"\1" else None
            file.seek(length + 4, 1)
    return None


def _pixels_of_ome(description: str, size: tuple[int, int] | None) -> list[dict[str, str]]:
    found = []
    for text in _PIXELS.findall(description):
        found.append({name: html.unescape(a or b) for name, a, b in _ATTRIBUTE.findall(text)})
    if size is not None:
        wanted = tuple(map(str, size))
        found.sort(key=lambda pixels: (pixels.get("SizeX"), pixels.get("SizeY")) != wanted)
    return found[:1]
