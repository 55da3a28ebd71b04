"""OME-Zarr: folders of chunks, described by JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from samplers import kept
from samplers.labels.label_map import LabelMap
from samplers.pairs.checks import check_pair
from samplers.pairs.folders import files_of, left_out
from samplers.pairs.pairing import find_pairs
from samplers.slides import stored_slide
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import texture, write_levels
from tests.helpers.zarr_slide import write_attributes, write_zarr

WIDTH, HEIGHT = 700, 500
PIXELS = texture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zarr(tmp_path_factory.mktemp("some slides") / "a b.ome.zarr", PIXELS)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / whole.name)


def reason(path: Path) -> str:
    """The one reason why it is bad, which begins with its name."""
    (found,) = check_pair(path, None, LabelMap(), 128, 0.25)
    assert found.startswith(str(path))
    return found


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_it_is_read_like_the_same_picture_as_tiff(tmp_path: Path, version: str, axes: str) -> None:
    zarr = write_zarr(tmp_path / "a.zarr", PIXELS, version=version, axes=axes)
    levels = [
        PIXELS,
        *(cv2.resize(PIXELS, None, fx=1 / n, fy=1 / n, interpolation=cv2.INTER_AREA) for n in (2, 4)),
    ]
    with Slide(zarr) as slide, Slide(write_levels(tmp_path / "a.tif", levels)) as same:
        assert (slide.level_sizes, slide.downsamples) == (same.level_sizes, same.downsamples)
        assert (slide.spacing, slide.spacing_known, slide.origin) == (0.25, True, (0, 0))
        for place in (
            (0, 0, WIDTH, HEIGHT),
            (63, 65, 200, 100),
            (WIDTH - 1, HEIGHT - 1, 1, 1),
            (8, 4, 100, 90, 2),
        ):
            assert np.array_equal(slide.read(*place), same.read(*place))
        assert slide.held_bytes < 1 << 20
    assert check_pair(zarr, None, LabelMap(), 128, 0.25) == []


@pytest.mark.parametrize(
    ("change", "spacing"),
    [({"unit": "nanometer"}, None), ({"unit": "millimeter"}, None), ({}, None), ({"unit": "pixel"}, None),
     ({"unit": "micrometer"}, 0.25)],
)  # fmt: skip
def test_spacing(folder: Path, change: dict[str, str], spacing: float | None) -> None:
    content = json.loads((folder / "zarr.json").read_text())
    for axis in content["attributes"]["ome"]["multiscales"][0]["axes"]:
        axis.pop("unit", None)
        axis.update(change)
    (folder / "zarr.json").write_text(json.dumps(content))
    with Slide(folder) as slide:
        assert (slide.spacing if slide.spacing_known else None) == spacing


def test_all_of_the_levels_may_be_scaled(folder: Path) -> None:
    content = json.loads((folder / "zarr.json").read_text())
    multiscale = content["attributes"]["ome"]["multiscales"][0]
    multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [1, 1, 1, 2, 2]}]
    (folder / "zarr.json").write_text(json.dumps(content))
    with Slide(folder) as slide:
        assert slide.spacing == 0.5


def test_chunks_that_are_not_there_have_the_fill_value(tmp_path: Path) -> None:
    array = PIXELS.copy()
    array[:64, :64] = 200
    folder = write_zarr(tmp_path / "a.zarr", array, fill=200)
    assert not (folder / "0" / "c" / "0" / "0" / "0" / "0" / "0").exists()
    with Slide(folder) as slide:
        assert (slide.read(0, 0, 64, 64) == 200).all()
        assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), array)


def test_damaged_chunks_are_errors_of_their_regions(folder: Path) -> None:
    chunk = folder / "0" / "c" / "0" / "0" / "0" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with Slide(folder) as slide:
        with pytest.raises(ReadError, match="level 0, x 70, y 70, 10 × 10"):
            slide.read(70, 70, 10, 10)
        assert slide.read(0, 0, 64, 64).shape == (64, 64, 3)


def test_damaged_metadata_and_other_folders(folder: Path) -> None:
    content = (folder / "zarr.json").read_bytes()
    for part in (0.0, 0.3, 0.99):
        (folder / "zarr.json").write_bytes(content[: int(len(content) * part)])
        assert "zarr.json cannot be read" in reason(folder)
    for other in (b"[]", b"{}", b'{"attributes":{"ome":[]}}', b'{"attributes":{"ome":{"multiscales":[]}}}'):
        (folder / "zarr.json").write_bytes(other)
        reason(folder)
    (folder / "zarr.json").write_bytes(content)
    (folder / "1" / "zarr.json").write_bytes(b"{")
    assert ": 1 cannot be opened: " in reason(folder)
    shutil.rmtree(folder / "1")
    assert "has no array 1" in reason(folder)
    (folder / "zarr.json").unlink()
    assert "is no OME-Zarr" in reason(folder)


@pytest.mark.parametrize(
    ("shape", "said"), [((HEIGHT, WIDTH, 4), "c 4"), ((HEIGHT, WIDTH, 1), "c 1"), ((HEIGHT, WIDTH, 2), "c 2")]
)
def test_other_channels_are_refused(tmp_path: Path, shape: tuple[int, ...], said: str) -> None:
    found = reason(write_zarr(tmp_path / "a.zarr", np.zeros(shape, np.uint8), downsamples=(1,)))
    assert said in found
    assert "RGB of 8 bits is needed" in found


@pytest.mark.parametrize("place", ["../other.zarr/0", "/etc"])
def test_levels_of_other_folders_are_refused(folder: Path, place: str) -> None:
    content = json.loads((folder / "zarr.json").read_text())
    content["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = place
    (folder / "zarr.json").write_text(json.dumps(content))
    assert "names levels that are not in it" in reason(folder)


def test_stains_of_fluorescence_are_refused(folder: Path) -> None:
    content = json.loads((folder / "zarr.json").read_text())
    channels: list[dict[str, Any]] = [{"color": color} for color in ("ff0000", "00FF00", "0000FF")]
    content["attributes"]["ome"]["omero"] = {"channels": channels}
    (folder / "zarr.json").write_text(json.dumps(content))
    assert check_pair(folder, None, LabelMap(), 128, 0.25) == []
    channels[0]["color"] = "FFFFFF"
    (folder / "zarr.json").write_text(json.dumps(content))
    assert "channels of the colours FFFFFF, 00FF00, 0000FF" in reason(folder)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_first_image_of_bioformats2raw(tmp_path: Path, version: str) -> None:
    write_zarr(tmp_path / "a.zarr" / "0", PIXELS, version=version)
    write_zarr(tmp_path / "a.zarr" / "1", PIXELS[:100, :100], version=version)
    write_attributes(tmp_path / "a.zarr", {"bioformats2raw.layout": 3}, version)
    with Slide(tmp_path / "a.zarr") as slide:
        assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), PIXELS)
    assert len(stored_slide.parts_of(tmp_path / "a.zarr")) >= 4


def test_without_tensorstore(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(DataError, match="pip install tensorstore==") as error:
        Slide(whole)
    version = str(error.value).rpartition(" ")[2]
    assert version in (Path(__file__).parents[3] / "tests" / "requirements.txt").read_text()


def test_folders_of_them(whole: Path, tmp_path: Path) -> None:
    slides, labels = whole.parent, tmp_path / "labels"
    labels.mkdir()
    (labels / "a b.xml").touch()
    (pair,), warnings = find_pairs(slides, labels, "zarr", "xml")
    assert (pair.slide, pair.name, warnings) == (whole, "a b.ome", [])
    assert files_of(slides, "dcm") == []
    (line,) = left_out(slides, [], ["tif"], "the slides' format is tif")
    assert "1 other files are left out (1 .zarr in folders; the slides' format is tif): a b.ome.zarr" in line
    (line,) = left_out(slides.parent, [], ["zarr"], "")
    assert f"subfolders with files of this format are not searched: {slides}" in line


def test_changes_are_noticed_without_a_look_at_the_chunks(folder: Path) -> None:
    before = kept.state_of(folder)
    assert before is not None
    assert len(before) == 1 + 2 * 4  # of the image and its three levels
    os.utime(folder / "2" / "zarr.json", ns=(0, 0))
    assert kept.state_of(folder) != before
    (folder / "zarr.json").write_bytes(b"{")
    assert kept.state_of(folder) != before
