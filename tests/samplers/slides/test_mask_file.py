"""Mask files of all kinds: the values are those that were stored, or the file is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import overwrite_tile, write_levels

WIDTH, HEIGHT = 150, 130


@pytest.fixture(scope="module")
def classes() -> np.ndarray:
    """0, 1 and 2, on the last tile as well."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[20:70, 30:90] = 1
    values[100:, 120:] = 2
    return values


def values_of(path: Path) -> np.ndarray:
    with Slide(path, kind="label") as mask:
        whole = mask.read(0, 0, mask.width, mask.height)
        np.testing.assert_array_equal(mask.read(40, 30, 60, 50), whole[30:80, 40:100])
        return whole


def write_tiff(path: Path, array: np.ndarray, photometric: str = "minisblack", **options: Any) -> Path:
    common = {"tile": (64, 64), "compression": "zlib", "metadata": None, **options}
    tifffile.imwrite(path, array, photometric=photometric, **common)
    return path


def paletted(values: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(values).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(colours)
    return picture


# The second palette has one colour twice and is full of black, as programs write it.
@pytest.mark.parametrize("colours", [[0, 0, 0, 255, 0, 0, 0, 255, 0], [9, 9, 9, 9, 9, 9] + [0] * 762])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("m.png", {}),
        ("m.png", {"bits": 2}),
        ("m.png", {"bits": 4}),
        ("m.png", {"transparency": 0}),
        ("m.bmp", {}),
        ("m.tif", {}),
        ("m.tif", {"compression": "tiff_lzw"}),
        ("m.tif", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_the_indices_of_a_palette_are_the_classes(
    tmp_path: Path, classes: np.ndarray, colours: list[int], name: str, options: dict[str, Any]
) -> None:
    paletted(classes, colours).save(tmp_path / name, **options)
    np.testing.assert_array_equal(values_of(tmp_path / name), classes)


def test_pixels_that_pillow_decoded_live_as_long_as_the_slide(tmp_path: Path, classes: np.ndarray) -> None:
    paletted(classes, [0, 0, 0, 255, 0, 0, 0, 255, 0]).save(tmp_path / "m.png")
    with Slide(tmp_path / "m.png", kind="label") as mask:
        mask.read(0, 0, 1, 1)
        others = [np.full((HEIGHT, WIDTH), 77, np.uint8) for _ in range(100)]
        np.testing.assert_array_equal(mask.read(0, 0, WIDTH, HEIGHT), classes)
    assert others


def test_a_pyramid_with_a_palette(tmp_path: Path, classes: np.ndarray) -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "m.tif") as tiff:
        for factor in (1, 2):
            common = {"tile": (64, 64), "compression": "zlib", "metadata": None}
            tiff.write(classes[::factor, ::factor], photometric="palette", colormap=colours, **common)
    np.testing.assert_array_equal(values_of(tmp_path / "m.tif"), classes)
    with Slide(tmp_path / "m.tif", kind="label") as mask:
        np.testing.assert_array_equal(mask.read(0, 0, 75, 65, 1), classes[::2, ::2])


def test_damage_in_a_file_that_gdal_reads_is_an_error(tmp_path: Path, classes: np.ndarray) -> None:
    path = write_tiff(tmp_path / "m.tif", classes.astype(np.float64))
    overwrite_tile(path, 0, b"\xff")
    with Slide(path, kind="label") as mask:
        for _ in range(2):
            with pytest.raises(DataError, match=r"m\.tif: level 0"):
                mask.read(0, 0, 60, 60)
        assert mask.read(70, 70, 20, 20).shape == (20, 20)


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">u2", "u2-png"]
)
def test_whole_numbers_of_any_type_are_read(tmp_path: Path, classes: np.ndarray, dtype: str) -> None:
    if dtype == "u2-png":
        cv2.imwrite(str(tmp_path / "m.png"), classes.astype(np.uint16))
        np.testing.assert_array_equal(values_of(tmp_path / "m.png"), classes)
    else:
        options = {"byteorder": ">"} if dtype[0] == ">" else {}
        path = write_tiff(tmp_path / "m.tif", classes.astype(np.dtype(dtype).newbyteorder("=")), **options)
        np.testing.assert_array_equal(values_of(path), classes)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.9, "f4"),
        (0.001, "f8"),
        (np.nan, "f4"),
        (np.inf, "f4"),
        (300.0, "f4"),
        (256, "u2"),
        (65535, "u2"),
        (257, "i4"),
        (2**40, "u8"),
        (-1, "i1"),
        (-1, "i2"),
        (-1.0, "f4"),
    ],
)
def test_other_numbers_are_refused(tmp_path: Path, classes: np.ndarray, value: float, dtype: str) -> None:
    array = classes.astype(dtype)
    array[30, 50] = value  # a single pixel
    with Slide(write_tiff(tmp_path / "m.tif", array), kind="label") as mask:
        with pytest.raises(DataError, match=r"m\.tif: .*it has the value .*whole numbers from 0 to 255"):
            mask.read(0, 0, WIDTH, HEIGHT)
        assert not mask.read(90, 0, 60, 60).any()  # where it is not


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_less_than_8_bits(tmp_path: Path, classes: np.ndarray, bits: int, name: str) -> None:
    stored = np.minimum(classes, 2**bits - 1)
    shown = pyvips.Image.new_from_array(stored * np.uint8(255 // (2**bits - 1)))
    if name == "m.png":
        shown.pngsave(str(tmp_path / name), bitdepth=bits)
    else:
        shown.tiffsave(str(tmp_path / name), bitdepth=bits)
    np.testing.assert_array_equal(values_of(tmp_path / name), stored)


@pytest.mark.parametrize("photometric", ["miniswhite", "cielab", "ycbcr", "separated"])
def test_values_that_can_mean_the_opposite_or_colours_are_refused(tmp_path: Path, photometric: str) -> None:
    bands = {"miniswhite": 1, "separated": 4}.get(photometric, 3)
    array = np.zeros((HEIGHT, WIDTH, bands), np.uint8).squeeze()
    with pytest.raises(DataError, match=r"m\.tif: .*(MinIsWhite|colours)"):
        Slide(write_tiff(tmp_path / "m.tif", array, photometric), kind="label")


def test_bool_as_tifffile_writes_it_is_refused(tmp_path: Path, classes: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "m.tif", classes > 0)  # MinIsWhite
    with pytest.raises(DataError, match="minisblack"):
        Slide(tmp_path / "m.tif", kind="label")


BANDS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("RGB", lambda v: np.dstack([v, v, v])),
    ("RGBA", lambda v: np.dstack([v, v, v, np.full_like(v, 255)])),
    ("LA", lambda v: np.dstack([v, np.full_like(v, 255)])),
]


@pytest.mark.parametrize(("mode", "bands"), BANDS, ids=[mode for mode, _ in BANDS])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_equal_bands_are_grey(
    tmp_path: Path, classes: np.ndarray, mode: str, bands: Callable[[np.ndarray], np.ndarray], name: str
) -> None:
    pyvips.Image.new_from_array(bands(classes)).write_to_file(str(tmp_path / name))
    np.testing.assert_array_equal(values_of(tmp_path / name), classes)


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp"])
def test_bands_that_differ_are_refused(tmp_path: Path, classes: np.ndarray, name: str) -> None:
    colours = np.array([(255, 255, 255), (255, 0, 0), (0, 255, 0)], np.uint8)[classes]
    Image.fromarray(colours).save(tmp_path / name)
    refused = pytest.raises(DataError, match=r"m\..*bands differ.*one band.*palette")
    with Slide(tmp_path / name, kind="label") as mask, refused:
        mask.read(0, 0, WIDTH, HEIGHT)


def test_bands_of_which_one_is_used_are_refused(tmp_path: Path, classes: np.ndarray) -> None:
    array = np.dstack([classes, 0 * classes, 0 * classes])
    path = write_tiff(tmp_path / "m.tif", array, "rgb")
    with Slide(path, kind="label") as mask, pytest.raises(DataError, match="bands differ"):
        mask.read(0, 0, WIDTH, HEIGHT)


@pytest.mark.parametrize("opacity", [0, 254])
def test_transparent_pixels_are_refused(tmp_path: Path, classes: np.ndarray, opacity: int) -> None:
    white = np.full_like(classes, 255)
    alpha = np.where(classes == 1, opacity, 255).astype(np.uint8)
    Image.fromarray(np.dstack([white, white, white, alpha])).save(tmp_path / "m.png")
    with Slide(tmp_path / "m.png", kind="label") as mask, pytest.raises(DataError, match="transparent"):
        mask.read(0, 0, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("m.tif", {"compression": "jpeg"}, "is compressed with JPEG"),
        (
            "m.tif",
            {"compression": "jpeg", "tile": True, "pyramid": True, "Q": 100},
            "is compressed with JPEG",
        ),
        ("m.tif", {"compression": "webp", "tile": True}, "is compressed with WebP"),
        ("m.jpg", {}, "is JPEG"),
        ("m.webp", {}, "is WEBP"),
    ],
)
def test_lossy_compression_is_refused(
    tmp_path: Path, classes: np.ndarray, name: str, options: dict[str, Any], method: str
) -> None:
    path = tmp_path / name
    pyvips.Image.new_from_array(np.dstack([classes * 120] * 3)).write_to_file(str(path), **options)
    as_png = path.rename(tmp_path / "renamed.png")  # the ending does not matter
    with pytest.raises(DataError, match=rf"renamed\.png: {method}.*TIFF with deflate or LZW, or PNG"):
        Slide(as_png, kind="label")


def test_lossless_webp_is_read(tmp_path: Path, classes: np.ndarray) -> None:
    image = pyvips.Image.new_from_array(np.dstack([classes] * 3))
    image.tiffsave(str(tmp_path / "m.tif"), compression="webp", lossless=True, tile=True)
    np.testing.assert_array_equal(values_of(tmp_path / "m.tif"), classes)


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
def test_lossless_compression_is_read(tmp_path: Path, classes: np.ndarray, compression: str) -> None:
    image = pyvips.Image.new_from_array(classes)
    image.tiffsave(str(tmp_path / "m.tif"), compression=compression, tile=True, tile_width=64, tile_height=64)
    np.testing.assert_array_equal(values_of(tmp_path / "m.tif"), classes)


def test_a_page_for_each_class_is_refused(tmp_path: Path, classes: np.ndarray) -> None:
    path = write_levels(tmp_path / "m.tif", [(classes == value).astype(np.uint8) for value in (1, 2)])
    with pytest.raises(DataError, match=r"m\.tif: has 2 images of 150 × 130"):
        Slide(path, kind="label")


@pytest.mark.parametrize(("written", "nodata"), [("255", 255), ("0", None), ("-1", None), ("nan", None)])
def test_the_value_of_no_data(tmp_path: Path, classes: np.ndarray, written: str, nodata: int | None) -> None:
    path = write_tiff(tmp_path / "m.tif", classes, extratags=[(42113, "s", 0, written, True)])
    with Slide(path, kind="label") as mask:
        assert mask.nodata == nodata
