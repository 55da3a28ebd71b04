"""Writes a slide of Leica, of which only a part is scanned: it has `openslide.bounds-*`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

_NM = 250  # per pixel of level 0
_UUID = "00000000-0000-0000-0000-000000000000"


def write_scn(path: Path, scanned: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Path:
    """`scanned`, uint8 (h, w, 3), lies at `corner` (x, y) of a slide of `size` (width, height) pixels of 0.25 µm."""
    height, width = scanned.shape[:2]
    macro = np.full((128, 128, 3), 255, np.uint8)
    levels = [macro, scanned, np.ascontiguousarray(scanned[::4, ::4])]
    collection = f'sizeX="{size[0] * _NM}" sizeY="{size[1] * _NM}"'
    images = _image("macro", [(128, 128, 0)], f'{collection} offsetX="0" offsetY="0"')
    view = f'sizeX="{width * _NM}" sizeY="{height * _NM}" offsetX="{corner[0] * _NM}" offsetY="{corner[1] * _NM}"'
    images += _image("main", [(width, height, 1), (width // 4, height // 4, 2)], view)
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        f'uuid="{_UUID}"><collection name="c" uuid="{_UUID}" {collection} sizeZ="0"><barcode></barcode>'
        f"{images}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate(levels):
            description = None if number else text
            common = {"photometric": "rgb", "compression": "zlib", "metadata": None}
            common |= {"resolution": (1e7 / _NM,) * 2, "resolutionunit": "CENTIMETER"}
            tiff.write(level, tile=(128, 128), description=description, **common)
    return path


def _image(name: str, levels: list[tuple[int, int, int]], view: str) -> str:
    dimensions = "".join(
        f'<dimension r="{r}" sizeX="{width}" sizeY="{height}" ifd="{ifd}"/>'
        for r, (width, height, ifd) in enumerate(levels)
    )
    return (
        f'<image name="{name}" uuid="{_UUID}"><creationDate>2020-01-01T00:00:00.0Z</creationDate>'
        f'<device model="synthetic" version="1"/><pixels sizeX="{levels[0][0]}" sizeY="{levels[0][1]}">{dimensions}'
        f'</pixels><view {view} spacingZ="0"/><scanSettings><objectiveSettings><objective>40</objective>'
        "</objectiveSettings><illuminationSettings><numericalAperture>0.75</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
