"""Regions, spacings and thumbnails; damage is an error, never pixels."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.slides import formats, slide
from samplers.slides.errors import DataError, ReadError
from samplers.slides.openslide_reader import OpenSlideReader
from samplers.slides.slide import Slide
from tests.helpers.slide_arrays import FACTORS, GARBAGE, HEIGHT, WIDTH
from tests.helpers.tiny_slides import overwrite_tile, shrink, texture, write_levels


def test_geometry_is_the_files_own(odd: Path) -> None:
    with Slide(odd) as s:
        assert (s.width, s.height, len(s.level_sizes)) == (WIDTH, HEIGHT, 4)
        assert s.level_sizes[1] == (133, 100)
        assert s.downsamples == pytest.approx((1, 2.5068, 3, 7), abs=1e-3)
        assert (s.downsamples[2], s.downsamples[3]) == (3.0, 7.0)  # rounding explains the rest
        assert s.spacing == pytest.approx(0.25, rel=1e-4)
        assert s.spacing_known


@pytest.mark.parametrize("level", range(4))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_read_gives_the_pixels_of_the_level(
    odd: Path, array: np.ndarray, level: int, data: st.DataObject
) -> None:
    expected = shrink(array, FACTORS[level])
    with Slide(odd) as s:
        sides = s.level_sizes[level]
        width, height = (data.draw(st.integers(1, side)) for side in sides)
        x, y = (data.draw(st.integers(0, side - size)) for side, size in zip(sides, (width, height)))
        x_l0, y_l0 = (round(v * s.downsamples[level]) for v in (x, y))
        pixels = s.read(x_l0, y_l0, width, height, level)
    np.testing.assert_array_equal(pixels, expected[y : y + height, x : x + width])


@pytest.mark.parametrize(
    "region",
    [
        (-1, 0, 9, 9, 0),
        (0, 245, 9, 9, 0),
        (330, 0, 9, 9, 0),
        (0, 0, 0, 9, 0),
        (0, 0, 48, 9, 3),
        (0, 0, 9, 9, 4),
    ],
)
def test_read_outside_is_refused(odd: Path, region: tuple[int, int, int, int, int]) -> None:
    with Slide(odd) as s, pytest.raises(ValueError, match=r"odd\.tif"):
        s.read(*region)


@pytest.mark.parametrize("level", range(4))
def test_a_region_may_end_with_the_slide(odd: Path, level: int) -> None:
    with Slide(odd) as s:
        size_l0 = int(25 * s.downsamples[level])
        assert s.read(s.width - size_l0, s.height - size_l0, 25, 25, level).shape == (25, 25, 3)


@pytest.mark.parametrize("spacing", [0.25, 0.3, 0.5, 0.75, 1.1, 2.2, 0.2])
def test_read_at_a_spacing_keeps_places(tmp_path: Path, spacing: float) -> None:
    ramp = np.repeat(np.linspace(0, 250, 501)[None, :, None], 400, 0).repeat(3, 2).round().astype(np.uint8)
    path = write_levels(tmp_path / "ramp.tif", [shrink(ramp, f) for f in (1, 2, 3)])
    with Slide(path) as s:
        pixels = s.read_at(100, 40, 40, 30, spacing)
    centres_l0 = 100 + (np.arange(40) + 0.5) * spacing / 0.25 - 0.5
    assert pixels.shape == (30, 40, 3)
    # A pixel of the level that is read (rounded corner and size), at half a value a level-0 pixel.
    assert np.abs(pixels[15, :, 0] - centres_l0 / 2).max() <= min(3, spacing / 0.25) / 2 + 0.5


@given(x=st.integers(0, 100), y=st.integers(0, 60), size=st.integers(1, 25), factor=st.floats(0.5, 7.3))
@settings(max_examples=60, deadline=None)
def test_labels_are_read_at_the_centres_of_their_pixels(
    mask: Path, array: np.ndarray, x: int, y: int, size: int, factor: float
) -> None:
    with Slide(mask, kind="label") as s:
        level = s.level_at_least(factor)
        pixels = s.read_at(x, y, size, size + 1, factor * s.spacing)
    values = shrink(array[:, :, 0], s.downsamples[level])
    centres = [
        (start + (np.arange(count) + 0.5) * factor) / s.downsamples[level]
        for start, count in ((y, size + 1), (x, size))
    ]
    # A centre on the border of two pixels may go either way.
    right = np.zeros(pixels.shape, bool)
    for dy in (-1e-6, 1e-6):
        for dx in (-1e-6, 1e-6):
            rows, columns = (np.floor(centre + d).astype(int) for centre, d in zip(centres, (dy, dx)))
            right |= pixels == values[np.ix_(rows, columns)]
    assert right.all()


def test_thumbnail_is_the_level_itself_or_shrunk(odd: Path, array: np.ndarray) -> None:
    with Slide(odd) as s:
        np.testing.assert_array_equal(s.thumbnail(111), shrink(array, 3))
        small = s.thumbnail(40)
        assert small.shape == (30, 40, 3)
        assert np.abs(small.mean((0, 1)) - array.mean((0, 1))).max() < 2


def test_thumbnail_in_strips_is_the_same(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide(odd) as s:
        whole = s.thumbnail(222)
        monkeypatch.setattr(slide, "_MAX_STRIP_PIXELS", 2000)
        assert np.abs(s.thumbnail(222).astype(int) - whole).mean() < 8  # rows are rounded at each strip


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("garbage", GARBAGE, ids=["00", "ff", "noise"])
def test_damaged_tile_is_an_error_each_time(jpeg: Path, level: int, garbage: bytes) -> None:
    with Slide(jpeg) as s:
        good = s.read(0, 0, 60, 60)
    overwrite_tile(jpeg, 1, garbage, page=level)
    with Slide(jpeg) as s:
        for _ in range(3):  # not from a cache the second time
            with pytest.raises(ReadError, match=rf"jpeg\.tif: level {level}"):
                s.read(60 << level, 0, 60, 60, level)
        np.testing.assert_array_equal(s.read(0, 0, 60, 60), good)


def test_damaged_tile_of_a_lossless_mask_is_an_error(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "m.tif", [texture(200, 200)[:, :, 0]])
    overwrite_tile(path, 1, b"\xff")
    with Slide(path, kind="label") as s, pytest.raises(ReadError):
        s.read(60, 0, 60, 60)


def test_one_colour_a_page_is_refused(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", list(texture(100, 90).transpose(2, 0, 1)))
    with pytest.raises(DataError, match=r"s\.tif: has one colour per page"):
        Slide(path)


def test_tile_that_was_never_scanned_is_white(jpeg: Path) -> None:
    with Slide(jpeg) as s:
        good = s.read(10, 10, 200, 150).copy()
    overwrite_tile(jpeg, 6)  # row 1, column 1 of 5 a row
    with Slide(jpeg) as s:
        pixels = s.read(10, 10, 200, 150)
    good[54:118, 54:118] = 255
    np.testing.assert_array_equal(pixels, good)


def test_threads_read_the_same(jpeg: Path) -> None:
    corners = [(x, y) for x in range(0, 200, 20) for y in range(0, 100, 20)] * 4
    with Slide(jpeg) as s:
        alone = [s.read(x, y, 90, 80) for x, y in corners]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda corner: s.read(*corner, 90, 80), corners))
    assert all((a == b).all() for a, b in zip(alone, together))
    with pytest.raises(ValueError, match="closed"):
        s.read(0, 0, 10, 10)


def test_threads_never_take_damage_for_pixels(jpeg: Path) -> None:
    overwrite_tile(jpeg, 6, b"\0")
    bad, good = (64, 64), (200, 0)

    def read(corner: tuple[int, int]) -> bool:
        try:
            s.read(*corner, 50, 50)
        except ReadError:
            return False
        return True

    with Slide(jpeg) as s, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, [bad, good] * 100))
    assert results == [False, True] * 100


def test_openslide_reads_the_same(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide(jpeg) as s:
        ours = [s.read(30, 40, 100, 90), s.read(32, 40, 50, 45, 1)]
    monkeypatch.setattr(formats, "OWN_VENDORS", ())
    with Slide(jpeg) as s:
        assert isinstance(s._reader, OpenSlideReader)
        by_openslide = [s.read(30, 40, 100, 90), s.read(32, 40, 50, 45, 1)]
    for a, b in zip(ours, by_openslide):
        assert np.abs(a.astype(int) - b).max() <= 2


def test_openslide_goes_on_after_an_error(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite_tile(jpeg, 6, b"\0")
    monkeypatch.setattr(formats, "OWN_VENDORS", ())
    with Slide(jpeg) as s:
        with pytest.raises(ReadError, match=r"jpeg\.tif"):
            s.read(64, 64, 50, 50)
        assert s.read(200, 0, 50, 50).shape == (50, 50, 3)


def png_header(side: int) -> bytes:
    """A PNG that claims `side`² grey pixels, and has few bytes of them."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("form", ["png", "strips", "one tile"])
def test_a_picture_that_is_only_decoded_as_a_whole_is_bounded(tmp_path: Path, kind: str, form: str) -> None:
    path = tmp_path / ("a.png" if form == "png" else "a.tif")
    if form == "png":
        path.write_bytes(png_header(61_440))
    else:
        tile = (64, 64) if form == "one tile" else None
        tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=tile, compression="zlib")
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            for name in (
                "ImageWidth",
                "ImageLength",
                *(("TileWidth", "TileLength") if tile else ("RowsPerStrip",)),
            ):
                tiff.pages[0].tags[name].overwrite(61_440, dtype="I")
    message = "61440 × 61440 pixels .* make it a tiled TIFF"
    with pytest.raises(DataError, match=rf"a\.\w+: .*{message}"):
        Slide(path, kind=kind)
