from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.slides import backends, formats, slide
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import overwrite_tile, shrink, texture, write_jpeg, write_levels, write_philips

WIDTH, HEIGHT = 333, 251
FACTORS = (1, 2.5, 3, 7)
GARBAGE = [b"\0", b"\xff", np.random.default_rng(0).bytes(4000)]


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return texture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> Path:
    """A slide whose levels are not powers of two."""
    path = tmp_path_factory.mktemp("odd") / "odd.tif"
    return write_levels(path, [shrink(array, factor) for factor in FACTORS], tile=32)


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    values = array[:, :, 0]
    return write_levels(path, [shrink(values, factor) for factor in (1, 3)], tile=32)


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    return write_jpeg(tmp_path / "jpeg.tif", texture(300, 200))


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
    scale = factor / s.downsamples[level]
    rows = ((y / s.downsamples[level]) + (np.arange(size + 1) + 0.5) * scale + 1e-9).astype(int)
    columns = ((x / s.downsamples[level]) + (np.arange(size) + 0.5) * scale + 1e-9).astype(int)
    expected = values[np.ix_(np.minimum(rows, len(values) - 1), np.minimum(columns, values.shape[1] - 1))]
    assert (pixels != expected).mean() <= (0.2 if size > 5 else 1)  # a centre on a border may go either way
    if scale == 1:
        np.testing.assert_array_equal(pixels, expected)


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


def test_old_messages_of_libvips_are_nobodys_fault(jpeg: Path) -> None:
    overwrite_tile(jpeg, 1, b"\0")
    pyvips.Region.new(pyvips.Image.new_from_file(str(jpeg))).fetch(64, 0, 60, 60)  # leaves one
    with Slide(jpeg) as s:
        assert s.read(0, 0, 60, 60).shape == (60, 60, 3)


def test_one_colour_a_page_is_refused(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", list(texture(100, 90).transpose(2, 0, 1)))
    with pytest.raises(DataError, match=r"s\.tif: has one colour a page"):
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
        assert not any(results[::2])  # the good ones may fail beside them, and are read again
        assert read(good)


def test_openslide_reads_the_same(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide(jpeg) as s:
        by_vips = [s.read(30, 40, 100, 90), s.read(32, 40, 50, 45, 1)]
    monkeypatch.setattr(slide, "VIPS_VENDORS", ())
    with Slide(jpeg) as s:
        assert isinstance(s._reader, backends.OpenSlideReader)
        by_openslide = [s.read(30, 40, 100, 90), s.read(32, 40, 50, 45, 1)]
    for a, b in zip(by_vips, by_openslide):
        assert np.abs(a.astype(int) - b).max() <= 2


def test_openslide_goes_on_after_an_error(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite_tile(jpeg, 6, b"\0")
    monkeypatch.setattr(slide, "VIPS_VENDORS", ())
    with Slide(jpeg) as s:
        with pytest.raises(ReadError, match=r"jpeg\.tif"):
            s.read(64, 64, 50, 50)
        assert s.read(200, 0, 50, 50).shape == (50, 50, 3)


def test_real_svs_by_both_libraries(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "real" / "CMU-1-Small-Region.svs"
    with Slide(path) as s:
        assert (s.level_sizes, s.spacing) == (((2220, 2967),), 0.499)
        by_vips = s.read(1000, 1500, 300, 200)
    monkeypatch.setattr(slide, "VIPS_VENDORS", ())
    with Slide(path) as s:
        assert (s.level_sizes, s.spacing) == (((2220, 2967),), 0.499)
        assert np.abs(s.read(1000, 1500, 300, 200).astype(int) - by_vips).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_plain_images_are_slides_of_one_level(tmp_path: Path, suffix: str, bands: int) -> None:
    pixels = np.concatenate([texture(120, 90), np.full((90, 120, 1), 255, np.uint8)], 2)[:, :, :bands]
    if (suffix, bands) == ("jpg", 4):
        pytest.skip("JPEG has no alpha")
    path = tmp_path / f"plain.{suffix}"
    pyvips.Image.new_from_array(pixels).write_to_file(str(path))
    with Slide(path) as s:
        assert (s.level_sizes, s.spacing, s.spacing_known) == (((120, 90),), 0.25, False)
        found = s.read(5, 6, 100, 80)
    expected = pixels[6:86, 5:105, :3].repeat(3 if bands == 1 else 1, 2)
    assert np.abs(found.astype(int) - expected).mean() < (0.01 if suffix == "png" else 15)


def test_a_mask_saved_as_colour_or_with_alpha_keeps_its_values(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(6, 10)
    rgba = np.dstack([values, values, values, np.full_like(values, 255)])
    pyvips.Image.new_from_array(rgba).write_to_file(str(tmp_path / "m.png"))
    with Slide(tmp_path / "m.png", kind="label") as s:
        np.testing.assert_array_equal(s.read(0, 0, 10, 6), values)


def test_pages_that_are_no_levels_are_left_out(tmp_path: Path, array: np.ndarray) -> None:
    other_shape = texture(90, 90)
    path = write_levels(tmp_path / "s.tif", [array, other_shape, shrink(array, 2)])
    assert Slide(path).level_sizes == ((333, 251), (166, 125))


def test_padding_of_philips_pages_is_no_part_of_the_slide(tmp_path: Path) -> None:
    array = texture(1000, 700)
    with Slide(write_philips(tmp_path / "s.tiff", array)) as s:
        assert isinstance(s._reader, backends.VipsReader)
        assert s.level_sizes == (
            (1024, 704),
            (512, 352),
            (256, 176),
        )  # its pages have 1024, 512, 256 × 704, 384, 192
        assert (s.downsamples, s.spacing) == ((1.0, 2.0, 4.0), 0.25)
        np.testing.assert_array_equal(s.read(400, 300, 50, 40, 2), array[::4, ::4][75:115, 100:150])


def test_jpeg_2000_is_for_openslide(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "jp2.svs"
    path.write_bytes((shared_data / "real" / "CMU-1-Small-Region.svs").read_bytes())
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags["Compression"].valueoffset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write((33005).to_bytes(2, "little"))
    with Slide(path) as s:
        assert isinstance(s._reader, backends.OpenSlideReader)
        with pytest.raises(ReadError, match="OpenJPEG"):  # of course: there is JPEG inside
            s.read(0, 0, 50, 50)


def test_levels_may_be_subifds(tmp_path: Path, array: np.ndarray) -> None:
    pyvips.Image.new_from_array(array).tiffsave(
        str(tmp_path / "s.tif"), tile=True, pyramid=True, subifd=True, tile_width=64, tile_height=64
    )
    with Slide(tmp_path / "s.tif") as s:
        assert s.level_sizes[:2] == ((333, 251), (166, 125))
        half = shrink(array, 2).astype(int)
        assert np.abs(s.read(0, 0, 166, 125, 1) - half).mean() < 12


@pytest.mark.parametrize(
    ("description", "spacing"),
    [
        ("Aperio Image Library\n1x1 |AppMag = 20|MPP = 0.4990|x", 0.499),
        ('<OME><Pixels PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"/></OME>', 0.25),
        ('<OME><Pixels PhysicalSizeX="0.00025" PhysicalSizeXUnit="mm"/></OME>', None),
        ("MPP = 0.0", None),
        ("nothing", None),
    ],
)
def test_spacing_out_of_the_description(description: str, spacing: float | None) -> None:
    assert formats.described_spacing(description) == spacing


@pytest.mark.parametrize("written", [None, 352.8])
def test_missing_or_absurd_spacing_is_assumed_with_a_warning(
    tmp_path: Path, written: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_levels(tmp_path / "s.tif", [texture(100, 100)], spacing=written)
    with caplog.at_level(logging.WARNING), Slide(path) as s:
        assert (s.spacing, s.spacing_known) == (0.25, False)
    assert "s.tif: no spacing" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"no image at all, but long enough to have a header"])
def test_unusable_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.svs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.svs"):
        Slide(path)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "deep.tif", [texture(100, 100).astype(np.uint16) * 100])
    with pytest.raises(DataError, match=r"deep\.tif.*8 bits"):
        Slide(path)


def test_a_level_that_holds_much_is_opened_anew(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide(jpeg) as s:
        s.read(0, 0, 100, 100)
        assert s.held_bytes > 100_000
        monkeypatch.setattr(backends, "MAX_LEVEL_BYTES", 50_000)
        expected = s.read(0, 0, 100, 100)
        assert s.held_bytes == 0
        np.testing.assert_array_equal(s.read(0, 0, 100, 100), expected)
