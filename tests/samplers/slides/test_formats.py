"""What is in a file: levels, spacing, pages that are none, formats that are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile

from samplers.slides import formats
from samplers.slides.errors import DataError, ReadError
from samplers.slides.openslide_reader import OpenSlideReader
from samplers.slides.slide import Slide
from samplers.slides.tiff_reader import TiffReader
from tests.helpers.tiny_slides import shrink, texture, write_levels, write_philips


def test_real_svs_by_both_libraries(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "real" / "CMU-1-Small-Region.svs"
    with Slide(path) as s:
        assert (s.level_sizes, s.spacing) == (((2220, 2967),), 0.499)
        ours = s.read(1000, 1500, 300, 200)
    monkeypatch.setattr(formats, "OWN_VENDORS", ())
    with Slide(path) as s:
        assert (s.level_sizes, s.spacing) == (((2220, 2967),), 0.499)
        assert np.abs(s.read(1000, 1500, 300, 200).astype(int) - ours).max() <= 2


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
    bounds = {"png": 0, "jpg": 15}
    assert np.abs(found.astype(int) - expected).mean() <= bounds[suffix]


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
        assert isinstance(s._reader, TiffReader)
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
        assert isinstance(s._reader, OpenSlideReader)
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


def write_bands(path: Path, array: np.ndarray, photometric: str, **options: object) -> Path:
    common = {"tile": (64, 64), "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, array, photometric=photometric, **common, **options)
    return path


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_extra_band_without_meaning_is_ignored(tmp_path: Path, value: int) -> None:
    rgb = texture(100, 90)
    rgbx = np.dstack([rgb, np.full((90, 100), value, np.uint8)])
    path = write_bands(tmp_path / "s.tif", rgbx, "rgb", extrasamples=["unspecified"])
    with Slide(path) as s:
        np.testing.assert_array_equal(s.read(0, 0, 100, 90), rgb)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgb = texture(100, 90)
    alpha = np.full((90, 100), 255, np.uint8)
    alpha[:, 50:] = 0
    path = write_bands(tmp_path / "s.tif", np.dstack([rgb, alpha]), "rgb", extrasamples=["unassalpha"])
    with Slide(path) as s:
        found = s.read(0, 0, 100, 90)
    np.testing.assert_array_equal(found[:, :50], rgb[:, :50])
    assert (found[:, 50:] == 255).all()


@pytest.mark.parametrize(
    ("bands", "photometric", "dtype", "reason"),
    [
        (5, "rgb", np.uint8, "5 bands"),
        (3, "minisblack", np.uint8, "3 bands"),  # three stains of fluorescence
        (4, "minisblack", np.uint8, "4 bands"),
        (4, "separated", np.uint8, "cmyk"),
        (3, "rgb", np.uint16, "8 bits"),
        (3, "rgb", np.float32, "8 bits"),
        (3, "cielab", np.uint8, "s.tif"),
    ],
)
def test_what_is_no_rgb_is_refused(
    tmp_path: Path, bands: int, photometric: str, dtype: type, reason: str
) -> None:
    array = np.dstack([texture(100, 90)[:, :, :2]] * 3)[:, :, :bands].astype(dtype)
    path = write_bands(tmp_path / "s.tif", array, photometric, planarconfig="contig")
    with pytest.raises(DataError, match=rf"s\.tif.*{reason}|{reason}"):
        Slide(path)


def test_grey_is_taken_as_it_is_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = texture(100, 90)[:, :, 0]
    with Slide(write_bands(tmp_path / "s.tif", grey, "minisblack")) as s:
        np.testing.assert_array_equal(s.read(0, 0, 100, 90), np.dstack([grey] * 3))
    assert "s.tif: has no colours" in caplog.text


def test_separate_planes_are_read(tmp_path: Path) -> None:
    array = texture(200, 150)
    path = write_bands(
        tmp_path / "s.tif", np.ascontiguousarray(array.transpose(2, 0, 1)), "rgb",
        planarconfig="separate", description="MPP = 0.3",
    )  # fmt: skip
    with Slide(path) as s:
        assert (s.spacing, s.spacing_known) == (0.3, True)
        np.testing.assert_array_equal(s.read(10, 20, 130, 120), array[20:140, 10:140])


def test_raw_ycbcr_is_not_taken_for_rgb(tmp_path: Path) -> None:
    neutral = np.full((100, 100, 3), 128, np.uint8)  # as RGB the same
    neutral[:, :, 2] = 200
    with Slide(write_bands(tmp_path / "s.tif", neutral, "ycbcr")) as s:
        red, _, blue = s.read(0, 0, 50, 50)[10, 10].astype(int)
    assert red - blue > 80


def test_an_extra_plane_is_left_out(tmp_path: Path) -> None:
    array = texture(100, 90)
    planes = np.ascontiguousarray(np.dstack([array, array[:, :, :1]]).transpose(2, 0, 1))
    path = write_bands(
        tmp_path / "s.tif", planes, "rgb", planarconfig="separate", extrasamples=["unspecified"]
    )
    with Slide(path) as s:
        np.testing.assert_array_equal(s.read(0, 0, 100, 90), array)


def test_the_largest_image_is_level_0(tmp_path: Path) -> None:
    array = texture(400, 300)
    label = np.ascontiguousarray(texture(90, 120, seed=1))
    path = write_levels(tmp_path / "s.tif", [label, shrink(array, 4), array, shrink(array, 2)])
    with Slide(path) as s:
        assert s.level_sizes == ((400, 300), (200, 150), (100, 75))
        np.testing.assert_array_equal(s.read(8, 4, 60, 50, 2), shrink(array, 4)[1:51, 2:62])


def test_an_image_of_other_pixels_is_no_level(tmp_path: Path) -> None:
    array = texture(400, 300)
    path = write_levels(tmp_path / "s.tif", [array, shrink(array, 2)[:, :, 0], shrink(array, 4)])
    assert Slide(path).level_sizes == ((400, 300), (100, 75))
