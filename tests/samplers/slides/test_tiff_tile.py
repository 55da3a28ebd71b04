"""Tiles of all compressions: the pixels that were stored, or an error if the tile is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import pyvips
import simplejpeg
import tifffile

from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import overwrite_tile, texture, write_jpeg

ARRAY = texture(200, 150)
GREY = ARRAY[:, :, 0].copy()
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"

# Compression, predictor, damage: "half" halves the size of a tile, bytes are written over its second half.
DAMAGES: list[tuple[str | None, bool, bytes | str]] = [
    (None, False, "half"),
    ("jpeg", False, "half"),
    ("jpeg", False, b"\0"),
    ("jpeg", False, b"\xff"),
    ("zlib", False, "half"),
    ("zlib", True, b"\xff"),
    ("lzw", False, "half"),
    ("lzw", True, b"\xff"),
    ("packbits", False, "half"),
    ("packbits", False, b"\x81"),
    ("zstd", False, "half"),
    ("zstd", True, b"\xff"),
    ("lzma", False, "half"),
    ("lzma", True, b"\xff"),
    ("webp", False, "half"),
]


def write(path: Path, array: np.ndarray = ARRAY, **options: Any) -> Path:
    common = {"tile": (64, 64), "photometric": "rgb" if array.ndim == 3 else "minisblack", "metadata": None}
    tifffile.imwrite(path, array, **{**common, **options})
    return path


def damage(path: Path, number: int, how: bytes | str) -> None:
    if isinstance(how, bytes):
        overwrite_tile(path, number, how)
        return
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tag = page.tags["TileByteCounts" if page.is_tiled else "StripByteCounts"]
        sizes = list(tag.value)
        place, dtype = tag.valueoffset, np.dtype(tiff.byteorder + {3: "u2", 4: "u4", 16: "u8"}[tag.dtype])
    sizes[number] //= 2
    with path.open("r+b") as file:
        file.seek(place)
        file.write(np.array(sizes, dtype).tobytes())


TILES = [(*case, (64, 64)) for case in DAMAGES]
STRIPS = [(*case, None) for case in DAMAGES if case[2] == "half"]


@pytest.mark.parametrize(("compression", "predictor", "how", "tile"), TILES + STRIPS)
def test_damage_is_an_error_of_the_regions_that_meet_it(
    tmp_path: Path, compression: str | None, predictor: bool, how: bytes | str, tile: tuple[int, int] | None
) -> None:
    options: dict[str, Any] = {"tile": tile, "rowsperstrip": None if tile else 48}
    if compression == "webp":
        options["compressionargs"] = {"level": 0}
    path = write(tmp_path / "s.tif", compression=compression, predictor=predictor, **options)
    with Slide(path) as slide:
        good = slide.read(0, 0, 200, 48)
        if compression != "jpeg" and compression != "webp":
            np.testing.assert_array_equal(slide.read(0, 0, 200, 150), ARRAY)
    damage(path, 5 if tile else 2, how)  # row 1, column 1; the third strip
    with Slide(path) as slide:
        for _ in range(2):
            with pytest.raises(ReadError, match=r"s\.tif: level 0, x 60, y 60, 70 × 60: "):
                slide.read(60, 60, 70, 60)
        np.testing.assert_array_equal(slide.read(0, 0, 200, 48), good)


def complaint_of_libvips(path: Path) -> str:
    """What libvips says of the second tile, which it returns grey."""
    pyvips.vips_lib.vips_error_clear()
    try:
        pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="random")).fetch(64, 0, 64, 64)
    except pyvips.Error as error:
        return str(error)
    return pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode()


def test_no_damage_is_missed_that_libvips_sees(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "s.tif", cv2.GaussianBlur(ARRAY, (0, 0), 2))
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    seen = 0
    for place in rng.integers(start + 40, start + size - 2, 100):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        if complaint_of_libvips(path):
            seen += 1
            with Slide(path) as slide, pytest.raises(ReadError, match="level 0"):
                slide.read(64, 0, 64, 64)
    assert seen > 20


def test_less_than_8_bits_are_spread_over_grey_and_kept_in_masks(tmp_path: Path) -> None:
    stored = GREY // 64
    image = pyvips.Image.new_from_array(stored * np.uint8(85))
    for name, options in (("t.tif", {"tile": True, "tile_width": 32, "tile_height": 32}), ("s.tif", {})):
        image.tiffsave(str(tmp_path / name), bitdepth=2, compression="deflate", predictor="none", **options)
        with Slide(tmp_path / name) as slide, Slide(tmp_path / name, kind="label") as mask:
            np.testing.assert_array_equal(slide.read(7, 5, 150, 120)[:, :, 1], stored[5:125, 7:157] * 85)
            np.testing.assert_array_equal(mask.read(7, 5, 150, 120), stored[5:125, 7:157])


@pytest.mark.parametrize("options", [{"photometric": "miniswhite"}, {"photometric": "palette"}])
def test_palettes_and_white_zero_look_as_libvips_has_them(tmp_path: Path, options: dict[str, Any]) -> None:
    if options["photometric"] == "palette":
        options["colormap"] = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    path = write(tmp_path / "s.tif", GREY, **options)
    expected = pyvips.Image.new_from_file(str(path)).numpy().reshape(150, 200, -1)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 200, 150), np.broadcast_to(expected, (150, 200, 3)))


def test_half_transparent_pixels_are_mixed_with_white_as_by_libvips(tmp_path: Path) -> None:
    values, alpha = np.mgrid[0:256, 0:256].astype(np.uint8)
    rgba = np.dstack([values, values, values, alpha])
    path = write(tmp_path / "s.tif", rgba, extrasamples=["unassalpha"])
    expected = pyvips.Image.new_from_file(str(path)).flatten(background=255).numpy()
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 256, 256), expected)
    over_white = (values.astype(int) * alpha // 255).astype(np.uint8)
    path = write(tmp_path / "p.tif", np.dstack([*[over_white] * 3, alpha]), extrasamples=["assocalpha"])
    with Slide(path) as slide:
        assert np.abs(slide.read(0, 0, 256, 256).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("markers", [b"", JFIF])
def test_the_tiff_says_what_colours_a_jpeg_has(tmp_path: Path, photometric: str, markers: bytes) -> None:
    """libjpeg would guess them from markers and the numbers of components."""
    tile = np.ascontiguousarray(ARRAY[:64, :64])
    stored = {"rgb": 2, "ycbcr": 3}[photometric]
    encoded = imagecodecs.jpeg8_encode(tile, level=98, colorspace=2, outcolorspace=stored, subsampling="444")
    encoded = encoded[:2] + markers + encoded[2:]
    options: dict[str, Any] = {"compression": "jpeg", "photometric": photometric, "subsampling": (1, 1)}
    if photometric == "rgb":
        options["compressionargs"] = {"outcolorspace": "rgb"}  # else tifffile writes that it is YCbCr
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        common = {"shape": (64, 64, 3), "dtype": np.uint8, "tile": (64, 64), "metadata": None}
        tiff.write(iter([encoded]), **options, **common)
    with Slide(tmp_path / "s.tif") as slide:
        found = slide.read(0, 0, 64, 64)
    assert np.abs(found.astype(int) - tile).mean() < 3
    if not markers:
        by_libvips = pyvips.Image.new_from_file(str(tmp_path / "s.tif"), access="random").numpy()
        np.testing.assert_array_equal(found, by_libvips)


def test_a_jpeg_of_another_size_than_the_tile_is_an_error(tmp_path: Path) -> None:
    for side in (48, 96):
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(ARRAY[:side, :side]))
        with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
            common = {"shape": (64, 64, 3), "dtype": np.uint8, "tile": (64, 64), "metadata": None}
            tiff.write(iter([encoded]), compression="jpeg", photometric="ycbcr", **common)
        with Slide(tmp_path / "s.tif") as slide, pytest.raises(ReadError, match=f"{side} × {side} pixels"):
            slide.read(0, 0, 10, 10)


def test_the_real_svs_is_decoded_as_by_libvips(shared_data: Path) -> None:
    path = shared_data / "real" / "CMU-1-Small-Region.svs"
    expected = pyvips.Image.new_from_file(str(path), access="random").numpy()
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.width, slide.height), expected)
