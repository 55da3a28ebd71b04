"""The directory of a TIFF as tifffile sees it, without reading the lists of tiles; damage is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile

from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from samplers.slides.stored_file import StoredFile
from samplers.slides.tiff_directory import Page, read_directory
from tests.helpers.tiny_slides import shrink, texture, write_jpeg, write_levels

ARRAY = texture(300, 200)


def pages_of(path: Path) -> list[Page]:
    file = StoredFile(path)
    try:
        return read_directory(file)
    finally:
        file.close()


@pytest.mark.parametrize(
    "options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}]
)
@pytest.mark.parametrize("tile", [(64, 48), None])
def test_it_is_that_of_tifffile(
    tmp_path: Path, options: dict[str, Any], tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, **options) as tiff:
        common = {"tile": tile, "rowsperstrip": None if tile else 7, "compression": "zlib", "metadata": None}
        tiff.write(
            ARRAY, photometric="rgb", description="a b", resolution=(40000, 40000), resolutionunit=3, **common
        )
        tiff.write(ARRAY[:, :, 0].astype(np.int16), photometric="minisblack", predictor=True, **common)
    file = StoredFile(path)
    pages = read_directory(file)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == len(pages) == 2
        for page, expected in zip(pages, tiff.pages):
            assert isinstance(expected, tifffile.TiffPage)
            assert page.size == (expected.imagewidth, expected.imagelength)
            assert page.tile == ((48, 64) if tile else (300, 7))
            assert (page.bits, page.samples) == (expected.bitspersample, expected.samplesperpixel)
            assert (page.photometric, page.compression) == (expected.photometric, expected.compression)
            assert page.description == expected.description
            for found, stored in (
                (page.offsets, expected.dataoffsets),
                (page.sizes, expected.databytecounts),
            ):
                assert found.read(file, 0, found.length).tolist() == list(stored)
    assert (pages[0].spacing, pages[0].number, pages[1].number) == (0.25, "uint", "int")
    assert (pages[0].predictor, pages[1].predictor) == (1, 2)


def test_levels_in_an_image_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    pyvips.Image.new_from_array(ARRAY).tiffsave(
        str(path), tile=True, pyramid=True, subifd=True, tile_width=64, tile_height=64
    )
    (page,) = pages_of(path)
    assert [level.size for level in page.levels] == [(150, 100), (75, 50), (37, 25)]


def test_opening_reads_little_however_many_tiles_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((3200, 3200), np.uint8)
    path = write_levels(
        tmp_path / "s.tif", [array, shrink(array, 2)], tile=16
    )  # 50,000 tiles, 600 kB of lists
    read, original = [], StoredFile.read

    def counted(self: StoredFile, position: int, size: int) -> bytes:
        read.append(size)
        return original(self, position, size)

    monkeypatch.setattr(StoredFile, "read", counted)
    Slide(path, "label").close()
    assert sum(read) <= 64 << 10
    assert len(read) <= 4


@pytest.mark.parametrize("part", [0.002, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_off_directory_is_an_error(tmp_path: Path, part: float) -> None:
    path = write_jpeg(
        tmp_path / "s.tif", ARRAY
    )  # libvips writes the directories of the levels behind their tiles
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=r"s\.tif: cannot be read as TIFF"):
        pages_of(path)


def test_images_in_a_circle_are_an_error(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", [ARRAY])
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    after = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[after : after + 4] = content[4:8]
    path.write_bytes(content)
    with pytest.raises(DataError, match="circle"):
        pages_of(path)


def test_a_list_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", [ARRAY])
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["ImageLength"]
    with path.open("r+b") as file:
        file.seek(tag.valueoffset)
        file.write((2000).to_bytes(tag.valuebytecount, "little"))
    with pytest.raises(DataError, match=r"s\.tif: .*level 0 has 160 tiles, but 20 offsets and 20 sizes"):
        Slide(path)


def test_any_damaged_byte_of_it_is_survived(tmp_path: Path) -> None:
    """Whatever a directory says, it is a slide, or a DataError: never another error, and never much memory."""
    path = write_levels(tmp_path / "s.tif", [ARRAY, shrink(ARRAY, 2)], tile=32)
    with tifffile.TiffFile(path) as tiff:
        places = [page.offset + i for page in tiff.pages for i in range(2 + 12 * len(page.tags) + 4)]
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(places, 150):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            with Slide(path) as slide:
                slide.read(0, 0, min(60, slide.width), min(60, slide.height))
        except DataError:
            refused += 1
    assert 15 < refused < 140
