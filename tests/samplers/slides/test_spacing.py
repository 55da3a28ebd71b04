"""The spacing as files of many programs state it, in all spellings."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile

from samplers.slides.slide import Slide
from samplers.slides.spacing import described_spacing
from tests.helpers.tiny_slides import shrink, texture


def ome(size: str, unit: str | None, more: str = "") -> str:
    stated = "" if unit is None else f' PhysicalSizeXUnit="{unit}"'
    return f'<OME><Image><Pixels ID="p" PhysicalSizeX="{size}"{stated}{more}></Pixels></Image></OME>'


@pytest.mark.parametrize(
    ("description", "spacing"),
    [
        ("Aperio Image Library\n1x1 |AppMag = 20|MPP = 0.4990|x", 0.499),
        ("Aperio Image Library\n1x1 |AppMag = 20|MPP = 0,4990|x", 0.499),
        ("mpp=0.25", 0.25),
        ("MPP: 0.25", 0.25),
        ("openslide.mpp-x = 0.25", 0.25),
        ('{"mpp_x": 0.25, "mpp_y": 3}', 0.25),
        ("MPP = 0.0", None),
        ("MPP = -0.25", None),
        ("MPP = 1e-6", None),
        ("MPP = 1e5", None),
        ("MPP = 0.2.5", None),
        ("MPP = 1,000.5", None),
        ("MPP = nan", None),
        (ome("0.25", "µm"), 0.25),
        (ome("0.25", "μm"), 0.25),  # the Greek letter
        (ome("0.25", "&#181;m"), 0.25),
        (ome("0.25", "\ufffdm"), 0.25),  # what libraries make of Latin-1
        (ome("0.25", "Âµm"), 0.25),  # UTF-8 that was read as Latin-1
        (ome("0.25", None), 0.25),  # OME's default
        (ome("0.00025", "mm"), 0.25),
        (ome("250", "nm"), 0.25),
        (ome("250000", "pm"), 0.25),
        (ome("0.000025", "cm"), 0.25),
        (ome("2.5E-7", "m"), 0.25),
        (ome("0,25", "µm"), 0.25),
        (ome("2500", "Å"), 0.25),
        (ome("0.25", "pixel"), None),
        (ome("0.25", "mm"), None),  # 250 µm
        (ome("1e", "µm"), None),
        (ome("0.25", "µm").replace('"', "'"), 0.25),
        (ome("0.25", "µm").replace("Pixels", "ome:Pixels"), 0.25),
        ("nothing", None),
    ],
)
def test_spacing_out_of_the_description(description: str, spacing: float | None) -> None:
    assert described_spacing(description) == (None if spacing is None else pytest.approx(spacing))


def test_an_ome_file_describes_several_images() -> None:
    text = ome("8", "µm", ' SizeX="99" SizeY="70"') + ome("0.5", "µm", ' SizeX="900" SizeY="700"')
    assert described_spacing(text, (900, 700)) == 0.5
    assert described_spacing(text, (99, 70)) == 8


def test_imagej_states_the_unit_apart_from_the_resolution() -> None:
    text = "ImageJ=1.53t\nunit=micron\nloop=false\n"
    assert described_spacing(text, None, 4.0) == 0.25
    assert described_spacing(text.replace("micron", "\\u00B5m"), None, 4.0) == 0.25
    assert described_spacing(text.replace("micron", "pixel"), None, 4.0) is None


def write(path: Path, resolution: float | None, unit: str, description: str | bytes | None = None) -> Path:
    options = {} if resolution is None else {"resolution": (resolution, resolution), "resolutionunit": unit}
    tags = [(270, "s", 0, description, True)] if isinstance(description, bytes) else []
    text = description if isinstance(description, str) else None
    array = texture(100, 80)
    common = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "extratags": tags}
    tifffile.imwrite(path, array, description=text, **common, **options)
    return path


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [
        (40_000, "CENTIMETER", 0.25),
        (101_600, "INCH", 0.25),
        (4000, "NONE", None),  # 0.25, if it were per millimetre
        (40_000, "NONE", None),
        (72, "INCH", None),
        (1, "CENTIMETER", None),
        (None, "", None),
    ],
)
def test_a_resolution_counts_with_its_unit(
    tmp_path: Path, resolution: float | None, unit: str, spacing: float | None
) -> None:
    with Slide(write(tmp_path / "s.tif", resolution, unit)) as s:
        assert s.spacing_known == (spacing is not None)
        assert s.spacing == pytest.approx(spacing or 0.25)


def test_the_description_counts_more_than_the_resolution(tmp_path: Path) -> None:
    with Slide(write(tmp_path / "s.tif", 72, "INCH", "MPP = 0,3")) as s:
        assert s.spacing == 0.3
    with Slide(write(tmp_path / "s.tif", 40_000, "CENTIMETER", "MPP = 0")) as s:
        assert s.spacing == 0.25


def test_the_description_may_be_latin_1(tmp_path: Path) -> None:
    with Slide(write(tmp_path / "s.tif", 1, "NONE", ome("0.25", "µm").encode("latin-1"))) as s:
        assert (s.spacing, s.spacing_known) == (0.25, True)


@pytest.mark.parametrize(("unit", "known"), [(1, True), (0, False)])
def test_a_png_states_its_unit(tmp_path: Path, unit: int, known: bool) -> None:
    path = tmp_path / "s.png"
    pyvips.Image.new_from_array(texture(60, 50)).copy(xres=4000, yres=4000).pngsave(str(path))
    content = bytearray(path.read_bytes())
    place = content.index(b"pHYs")
    content[place + 12] = unit
    content[place + 13 : place + 17] = zlib.crc32(content[place : place + 13]).to_bytes(4, "big")
    path.write_bytes(content)
    with Slide(path) as s:
        assert (s.spacing, s.spacing_known) == (0.25, known)


def test_the_spacing_is_that_of_the_image_that_is_level_0(tmp_path: Path) -> None:
    array = texture(400, 300)
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for level, spacing in ((shrink(array, 4), 1.0), (array, 0.25), (shrink(array, 2), 0.5)):
            resolution = (1e4 / spacing,) * 2
            common = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
            tiff.write(level, resolution=resolution, resolutionunit="CENTIMETER", **common)
    with Slide(tmp_path / "s.tif") as s:
        assert (s.level_sizes, s.spacing) == (((400, 300), (200, 150), (100, 75)), 0.25)
        np.testing.assert_array_equal(s.read(40, 20, 30, 30), array[20:50, 40:70])
