from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from samplers.labels.label_map import LabelMap
from samplers.pairs.checks import check_pair, open_whole
from samplers.pairs.pairing import SlidePair, check_pairs
from tests.helpers.tiny_slides import overwrite_tile, shrink, texture, write_jpeg, write_levels
from tests.samplers.labels.test_annotations import SQUARE, asap
from utils.reporting import progress_bar

MAP = LabelMap()


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_jpeg(tmp_path / "slide.tif", texture(500, 400))


def reason(slide: Path, label: Path | None = None, size: int = 128, resolution: float | None = 0.25) -> str:
    """The one reason why it is bad."""
    (found,) = check_pair(slide, label, MAP, size, resolution)
    return found


def test_good_ones_have_no_reasons(tmp_path: Path, slide: Path) -> None:
    xml = tmp_path / "slide.xml"
    xml.write_text(asap(("Polygon", "_0", SQUARE)))
    mask = write_levels(tmp_path / "mask.tif", [np.ones((400, 500), np.uint8)])
    for label in (None, xml, mask):
        assert check_pair(slide, label, MAP, 256, 0.25) == []


def test_demo_is_good(demo: Path) -> None:
    for slide in (demo / "slides").glob("*.tif"):
        assert check_pair(slide, demo / "masks" / f"{slide.stem}_mask.tif", MAP, 512, 0.25) == []


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("lossless", [False, True])
def test_truncated_anywhere(tmp_path: Path, slide: Path, part: float, lossless: bool) -> None:
    if lossless:  # tifffile writes the tables before the tiles, libvips behind them
        array = texture(500, 400)
        write_levels(slide, [array, shrink(array, 2)])
    content = slide.read_bytes()
    slide.write_bytes(content[: int(len(content) * part)])
    assert "slide.tif" in reason(slide)


def test_levels_that_are_cut_off_are_missed(slide: Path) -> None:
    """What is left is a whole slide with one level, as libvips sees it."""
    with tifffile.TiffFile(slide) as tiff:
        last = max(o + n for o, n in zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts))
        end = max(
            tiff.pages[0].offset + 300, *(t.valueoffset + t.valuebytecount for t in tiff.pages[0].tags), last
        )
        assert end < tiff.pages[1].offset
    slide.write_bytes(slide.read_bytes()[:end])
    assert "truncated or damaged" in reason(slide)


def test_the_last_byte_is_missed(tmp_path: Path) -> None:
    for tile, part in ((64, "tile"), (None, "strip")):
        path = write_levels(tmp_path / "s.tif", [texture(300, 200)], tile=tile)
        open_whole(path).close()
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts))
        path.write_bytes(path.read_bytes()[: end - 1])
        assert f"{path}: {part}" in reason(path)


def test_a_tile_behind_the_end_of_the_file(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        tag = tiff.pages[1].tags["TileOffsets"]
    with slide.open("r+b") as file:
        file.seek(tag.valueoffset + 3 * tag.valuebytecount // tag.count)
        file.write(b"\0\0\0\x7f")
    assert "tile 3 of image 1 (1 of" in reason(slide)


@pytest.mark.parametrize("page", [0, 1, 2])
def test_damage_in_the_last_tile_is_found(slide: Path, page: int) -> None:
    with tifffile.TiffFile(slide) as tiff:
        last = len(tiff.pages[page].dataoffsets) - 1
    overwrite_tile(slide, last, b"\0", page)
    assert f"slide.tif: level {page}" in reason(slide)


def test_unreadable(tmp_path: Path, shared_data: Path) -> None:
    assert "broken.svs" in reason(shared_data / "real" / "broken.svs")
    assert "missing.tif" in reason(tmp_path / "missing.tif")
    (tmp_path / "empty.png").touch()
    assert "0 bytes" in reason(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_plain_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"patch.{suffix}"
    cv2.imwrite(str(path), texture(256, 256)[:, :, ::-1])
    assert check_pair(path, None, MAP, 128, 0.25) == []  # spacing cannot be in there
    path.write_bytes(path.read_bytes()[:-4000])
    assert path.name in reason(path)


def test_no_tissue(tmp_path: Path) -> None:
    blank = np.full((400, 500, 3), 243, np.uint8)
    assert "no tissue" in reason(write_jpeg(tmp_path / "s.tif", blank, spacing=4.0), resolution=4.0)
    patch = write_jpeg(tmp_path / "patch.tif", blank)  # a tenth of a millimetre
    assert check_pair(patch, None, MAP, 128, 0.25) == []


def test_spacing_missing(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", [texture(300, 300)], spacing=None)
    assert "the spacing is missing" in reason(path)
    assert check_pair(path, None, MAP, 128, None) == []  # level 0 is read, whatever its spacing


def test_smaller_than_the_patch(slide: Path) -> None:
    assert "500 × 400 pixels are smaller than a patch of 512 × 512" in reason(slide, size=512)
    assert "smaller than a patch of 512 × 512" in reason(slide, size=256, resolution=0.5)
    assert check_pair(slide, None, MAP, 400, 0.25) == []
    assert check_pair(slide, None, MAP, 200, 0.5) == []


def test_label_of_another_size(tmp_path: Path, slide: Path) -> None:
    mask = write_levels(tmp_path / "mask.tif", [np.ones((400, 480), np.uint8)])
    assert "mask.tif: is 480 × 400 pixels" in reason(slide, mask)


def test_damaged_label(tmp_path: Path, slide: Path) -> None:
    mask = write_levels(tmp_path / "mask.tif", [texture(500, 400)[:, :, 0]])
    with tifffile.TiffFile(mask) as tiff:
        last = len(tiff.pages[0].dataoffsets) - 1
    overwrite_tile(mask, last, np.random.default_rng(0).bytes(3000))
    assert "mask.tif: level 0" in reason(slide, mask)


def test_truncated_label(tmp_path: Path, slide: Path) -> None:
    mask = write_levels(tmp_path / "mask.tif", [texture(500, 400)[:, :, 0]])
    mask.write_bytes(mask.read_bytes()[:-2000])
    assert "mask.tif: " in reason(slide, mask)


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ([], "no annotation"),
        ([("Dot", "_0", [(5, 5)])], "no annotation.*is a Dot"),
        ([("Polygon", "_0", [(5, 5)])], "no annotation.*1 points"),
        ([("Polygon", "Necrosis", SQUARE)], "no annotation.*not in the label map: Necrosis"),
        ([("Polygon", "_0", [(x + 9000, y) for x, y in SQUARE])], "outside of the slide"),
        ([("Polygon", "_0", [*SQUARE, ("nan", 1)])], "NaN"),
    ],
)
def test_no_annotation(tmp_path: Path, slide: Path, annotations: list, why: str) -> None:
    xml = tmp_path / "slide.xml"
    xml.write_text(asap(*annotations))
    assert re.search(f"slide.xml: .*{why}", reason(slide, xml))


def test_a_mask_without_tumour_is_no_mistake(tmp_path: Path, slide: Path) -> None:
    mask = write_levels(tmp_path / "mask.tif", [np.zeros((400, 500), np.uint8)])
    assert check_pair(slide, mask, MAP, 128, 0.25) == []


def test_all_are_checked_in_parallel(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "LINES_EVERY", 1e-9)
    pairs = [SlidePair(path, None) for path in (slide, tmp_path / "missing.tif", slide.with_suffix(".png"))]
    found = check_pairs(pairs, MAP, 128, 0.25, threads=3, progress="checking slides")
    assert list(found) == pairs
    assert [len(found[pair].reasons) for pair in pairs] == [0, 1, 1]
    assert "checking slides: 3 of 3 slides" in capsys.readouterr().err


def test_damage_is_not_blamed_on_others_in_parallel(tmp_path: Path) -> None:
    pairs = [SlidePair(write_jpeg(tmp_path / f"{i}.tif", texture(300, 200)), None) for i in range(12)]
    for pair in pairs[::3]:
        overwrite_tile(pair.slide, 0, b"\0")
    found = check_pairs(pairs, MAP, 128, 0.25, threads=6)
    assert [bool(found[pair].reasons) for pair in pairs] == [True, False, False] * 4
