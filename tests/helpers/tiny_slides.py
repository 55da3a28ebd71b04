"""Writes seeded slides of a few hundred pixels: lossless ones with any levels, and JPEG pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyvips
import tifffile


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return pixels that look like stained tissue, with contrast at all scales: uint8 (h, w, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 90, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (smooth + np.array([150, 60, 140]) + rng.integers(0, 15, (height, width, 3))).astype(np.uint8)


def write_levels(
    path: Path, levels: Sequence[np.ndarray], spacing: float | None = 0.25, tile: int | None = 64
) -> Path:
    """Write a lossless TIFF with these levels, in strips if `tile` is None. Return `path`."""
    resolution = {"resolution": (1e4 / spacing,) * 2, "resolutionunit": "CENTIMETER"} if spacing else {}
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                level,
                tile=(tile, tile) if tile else None,
                photometric="rgb" if level.ndim == 3 else "minisblack",
                compression="zlib",
                subfiletype=1 if number else 0,
                metadata=None,
                **resolution,
            )
    return path


def shrink(array: np.ndarray, downsample: float) -> np.ndarray:
    """Return the pixels in which the centres of a coarser level's pixels lie."""
    places = [((np.arange(int(n / downsample)) + 0.5) * downsample).astype(int) for n in array.shape[:2]]
    return np.ascontiguousarray(array[np.ix_(*places)])


def write_jpeg(path: Path, array: np.ndarray, spacing: float = 0.25, tile: int = 64) -> Path:
    """Write a tiled JPEG pyramid with downsamples of 2, 4, 8, …, as scanners do. Return `path`."""
    image = pyvips.Image.new_from_array(array).copy(xres=1000 / spacing, yres=1000 / spacing)
    options = {"compression": "jpeg", "Q": 90, "tile": True, "pyramid": True, "resunit": "cm"}
    image.tiffsave(str(path), tile_width=tile, tile_height=tile, **options)
    return path


def write_philips(path: Path, array: np.ndarray, spacing: float = 0.25, tile: int = 64) -> Path:
    """Write a TIFF as a Philips scanner does: pages are padded to whole tiles, and the true downsamples are in XML."""

    def spacing_of(level: int) -> str:
        value = f"&quot;{spacing / 1000 * 2**level}&quot;"
        return attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", f"{value} {value}")

    def attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
        return (
            f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">{value}</Attribute>'
        )

    def sequence(name: str, group: str, element: str, items: str) -> str:
        return attribute(name, group, element, "IDataObjectArray", f"<Array>{items}</Array>")

    levels = [array[:: 2**n, :: 2**n] for n in range(3)]
    parts = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing_of(n)}'
        + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0x1001", "0x8B02", "IUInt16", str(n))
        + "</DataObject>"
        for n in range(3)
    )
    image = attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI") + spacing_of(0)
    image += sequence("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "0x1001", "0x8B01", parts)
    scan = f'<DataObject ObjectType="DPScannedImage">{image}</DataObject>'
    images = sequence("PIM_DP_SCANNED_IMAGES", "0x301D", "0x1003", scan)
    xml = f'<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">{images}</DataObject>'
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            padding = [(0, -side % tile) for side in level.shape[:2]]
            tiff.write(
                np.pad(level, (*padding, (0, 0)), constant_values=255),
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if number else 0,
                description=None if number else xml,
                software="Philips DP v1.0",
                metadata=None,
            )
    return path


def overwrite_tile(path: Path, number: int, content: bytes | None = None, page: int = 0) -> None:
    """Overwrite the second half of a tile. If `content` is None, set the tile's place and size to 0 instead."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[page].tags
        place = tiff.pages[page].dataoffsets[number], tiff.pages[page].databytecounts[number]
        entries = [(t.valueoffset + number * t.valuebytecount // t.count, t.valuebytecount // t.count)
                   for t in (tags["TileOffsets"], tags["TileByteCounts"])]  # fmt: skip
    with path.open("r+b") as file:
        if content is None:
            for offset, size in entries:
                file.seek(offset)
                file.write(bytes(size))
        else:
            file.seek(place[0] + place[1] // 2)
            file.write((content * place[1])[: place[1] - place[1] // 2])
