"""Decodes a tile or strip of a TIFF file. Damage is an error, never pixels.

JPEG is decoded by simplejpeg, which raises for what libjpeg only warns of: truncated or damaged data, of which libjpeg,
and imagecodecs and libtiff with it, make grey pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
import simplejpeg

from samplers.slides.errors import DataError
from samplers.slides.tiff_directory import JPEG, WEBP, YCBCR, ZSTD, Page

# The errors of the codecs for data that cannot be decoded.
CODEC_ERRORS = (ValueError, RuntimeError, LookupError, struct.error)

_DECOMPRESS: dict[int, Callable[..., bytes] | None] = {
    1: None,
    5: imagecodecs.lzw_decode,
    8: imagecodecs.deflate_decode,
    32946: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    34925: imagecodecs.lzma_decode,
    ZSTD: imagecodecs.zstd_decode,
}
_PREDICTORS = {1: None, 2: imagecodecs.delta_decode, 3: imagecodecs.floatpred_decode}
_KINDS = {"uint": "u", "int": "i", "float": "f"}
# Zstandard makes of equal bytes at most this many times fewer, the others less: small files must not take much memory.
_MAX_RATIO = 40_000
_START_OF_FRAME = (0xC0, 0xC1, 0xC2)  # that libjpeg decodes
_JFIF, _ADOBE, _START_OF_SCAN = 0xE0, 0xEE, 0xDA


def can_decode(page: Page) -> bool:
    """Return whether `decode_tile` decodes the tiles of an image."""
    bands = _bands(page)
    if page.compression == JPEG:
        return page.bits == 8 and bands in (1, 3)
    if page.compression == WEBP:
        return page.bits == 8 and bands in (3, 4)
    if page.compression not in _DECOMPRESS or page.photometric == YCBCR or page.predictor not in _PREDICTORS:
        return False
    if page.bits in (8, 16, 32, 64):
        return page.number in _KINDS and (page.number != "float" or page.bits > 8)
    return page.number == "uint" and 0 < page.bits < 32 and page.predictor == 1


def decode_tile(page: Page, data: bytes | memoryview) -> np.ndarray:
    """Return the pixels of an encoded tile, of separate planes a tile of one: (rows, columns, bands), native type.

    The last strip of an image may have fewer rows than the others, and some programs leave out what of a tile lies
    outside of the image. Raises DataError or one of CODEC_ERRORS if the tile is damaged.
    """
    columns, rows = page.tile
    if page.compression == WEBP:
        pixels = np.asarray(imagecodecs.webp_decode(data, hasalpha=_bands(page) == 4))
        if pixels.shape[0] > rows or pixels.shape[1] > columns:
            raise DataError(
                f"it holds {pixels.shape[1]} × {pixels.shape[0]} pixels, but tiles have {columns} × {rows}"
            )
        return pixels
    if columns * rows * _bands(page) * page.bits / 8 > _MAX_RATIO * len(data):
        raise DataError(f"{len(data)} bytes cannot hold {columns} × {rows} pixels")
    if page.compression == JPEG:
        colours = "GRAY" if _bands(page) == 1 else "RGB"
        return simplejpeg.decode_jpeg(_whole_jpeg(page, data), colours, strict=True)
    return _decode_lossless(page, data)


def _bands(page: Page) -> int:
    return 1 if page.separate else page.samples


def _whole_jpeg(page: Page, data: bytes | memoryview) -> bytes:
    """Return a JPEG that libjpeg decodes by itself, in the colours that the TIFF says it has.

    The tables that all tiles have in common are put before the tile's own. libjpeg guesses colours from a JFIF or Adobe
    marker or the numbers of the components, so an Adobe marker that says YCbCr or RGB takes the place of all markers.
    """
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + (b"\1" if page.photometric == YCBCR else b"\0")
    parts = [b"\xff\xd8", adobe, page.tables[2:-2]]
    position = 2
    while data[position + 1] != _START_OF_SCAN:
        marker, size = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # any number of these may stand before a marker
            position += 1
            continue
        end = position + 2 + size
        if data[position] != 0xFF or end > len(data):
            raise DataError("its JPEG header is damaged")
        if marker in _START_OF_FRAME:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            columns, rows = page.tile
            if width > columns or height > rows:
                raise DataError(f"it holds {width} × {height} pixels, but tiles have {columns} × {rows}")
        if marker not in (_JFIF, _ADOBE):
            parts.append(data[position:end])
        position = end
    return b"".join([*parts, data[position:]])


def _decode_lossless(page: Page, data: bytes | memoryview) -> np.ndarray:
    (columns, rows), bands = page.tile, _bands(page)
    row_bytes = (columns * bands * page.bits + 7) // 8
    if page.reversed_bits:
        data = imagecodecs.bitorder_decode(data)
    decompress = _DECOMPRESS[page.compression]
    if decompress is not None:
        data = decompress(data, out=rows * row_bytes)
    rows = min(rows, len(data) // row_bytes)
    data = bytes(data[: rows * row_bytes])  # a copy of what was read together with other tiles
    if page.bits not in (8, 16, 32, 64):
        smallest = np.min_scalar_type(2**page.bits - 1)
        pixels = imagecodecs.packints_decode(data, smallest, page.bits, runlen=columns * bands)
        return np.asarray(pixels).reshape(rows, columns, bands)
    kind = f"{_KINDS[page.number]}{page.bits // 8}"
    # The predictor of floating-point numbers takes the bytes as they are.
    pixels = np.frombuffer(data, kind if page.predictor == 3 else page.byte_order + kind)
    pixels = pixels.reshape(rows, columns, bands).astype(kind, copy=False)
    predict = _PREDICTORS[page.predictor]
    return pixels if predict is None else np.asarray(predict(pixels, axis=-2))
