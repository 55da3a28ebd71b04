"""Slides that are folders: found, named, paired, divided, and left out with a word."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from evaluation.truth import find_files
from prediction.find import find_slides
from samplers import SamplerConfig
from samplers.labels.label_map import LabelMap
from samplers.pairs.camelyon import camelyon16, center_of
from samplers.pairs.folders import files_below, files_of, left_out
from samplers.pairs.pairing import SlidePair, check_pairs, find_pairs
from samplers.reader import BadSlideError, PairReader
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import parts_of, size_of, slide_name
from tests.helpers.dicom_slide import write_dicom
from tests.helpers.lesion_slides import LESIONS, asap_xml
from tests.helpers.tiny_slides import texture
from utils.cli import UserError

SERIES = "1.2.840.113"  # in a folder's name it is no ending


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two DICOM slides, a folder without any, a TIFF, and a file of each format that is none."""
    folder = tmp_path / "some slides"
    for name in ("tumor_001", SERIES):
        _touch(folder / name / "a.dcm", folder / name / "b.DCM")
    _touch(folder / "notes" / "a.txt", folder / ".hidden" / "a.dcm", folder / "x.tif", folder / "notes.txt")
    return folder


def _touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_names_sizes_and_parts(slides: Path) -> None:
    assert [slide_name(path) for path in files_of(slides, "dcm")] == [SERIES, "tumor_001"]
    assert SlidePair(slides / SERIES, None).name == SERIES
    assert slide_name(slides / "a.b.tif") == "a.b"
    assert parts_of(slides / SERIES) == [slides / SERIES / "a.dcm", slides / SERIES / "b.DCM"]
    assert [size_of(slides / name) for name in (SERIES, "x.tif", "missing")] == [2, 1, 0]


def test_other_folders_are_named(slides: Path) -> None:
    _touch(slides / "batch" / "tumor_002" / "a.dcm")
    lines = left_out(slides, files_of(slides, "dcm"), ["dcm"], "the slides' format is dcm")
    assert lines[0] == f"{slides}: 1 other files are left out (1 .tif; the slides' format is dcm): x.tif"
    assert (
        lines[1] == f"{slides}: 1 subfolders with files of this format are not searched: {slides / 'batch'}"
    )
    assert lines[2] == f"{slides}: 1 subfolders are no slides (no .dcm files in them): {slides / 'notes'}"
    (line,) = left_out(slides, files_of(slides, "tif"), ["tif"], "the slides' format is tif")
    assert "2 other files are left out (2 .dcm in folders; the slides' format is tif)" in line


def test_all_files_in_one_folder(slides: Path) -> None:
    with pytest.raises(
        DataError, match=r"tumor_001: has 2 \.dcm files, but each slide of this format is a folder"
    ):
        files_of(slides / "tumor_001", "dcm")


def test_of_centres(slides: Path) -> None:
    _touch(slides / "center_3" / "patient_060_node_1" / "a.dcm", slides / "center_3" / "x.dcm.part")
    found = files_below([slides], "dcm")
    assert [path.name for path in found] == [SERIES, "tumor_001", "patient_060_node_1"]
    assert center_of(found[2]) == 3
    lines = left_out(slides, found, ["dcm"], "", depth=1)
    assert "2 other files" in lines[0]
    assert not any("not searched" in line for line in lines)


def test_in_the_layout_of_camelyon16(tmp_path: Path) -> None:
    _touch(tmp_path / "training/tumor/tumor_001/a.dcm", tmp_path / "training/normal/normal_001/a.dcm")
    _touch(tmp_path / "training/lesion_annotations/tumor_001.xml")
    (pairs, warnings), _ = camelyon16(tmp_path, "dcm", "xml", "skip")
    assert [(pair.name, pair.label is not None) for pair in pairs] == [
        ("normal_001", False),
        ("tumor_001", True),
    ]
    assert warnings == []


def test_pairs_by_the_name_of_the_folder(slides: Path, tmp_path: Path) -> None:
    _touch(tmp_path / "labels" / "tumor_001.xml", tmp_path / "labels" / f"{SERIES}.xml")
    pairs, _ = find_pairs(slides, tmp_path / "labels", "dcm", "xml")
    assert [(pair.name, pair.label.name) for pair in pairs] == [
        (SERIES, f"{SERIES}.xml"), ("tumor_001", "tumor_001.xml")
    ]  # fmt: skip
    shutil.rmtree(slides / "tumor_001")
    with pytest.raises(DataError, match=r"1 labels without a slide: .*tumor_001\.xml"):
        find_pairs(slides, tmp_path / "labels", "dcm", "xml")


def test_labels_beside_the_folders(slides: Path) -> None:
    _touch(slides / "tumor_001.xml", slides / f"{SERIES}_annotations.xml")
    pairs, _ = find_pairs(slides, slides, "dcm", "xml")
    assert [pair.name for pair in pairs] == [SERIES, "tumor_001"]


def test_to_predict(slides: Path) -> None:
    found, warnings = find_slides([str(slides)])
    assert [path.name for path in found] == [SERIES, "tumor_001", "x.tif"]  # the largest first
    assert warnings == []
    alone, _ = find_slides([str(slides / SERIES), str(slides / "tumor*")])
    assert [path.name for path in alone] == [SERIES, "tumor_001"]
    _touch(slides / "x" / "a.dcm")
    with pytest.raises(UserError, match="have the same name"):
        find_slides([str(slides)])


def test_to_evaluate(slides: Path) -> None:
    assert set(find_files(slides, (".tif", ".dcm"))) == {SERIES, "tumor_001", "x"}
    assert set(find_files(slides, (".tif",))) == {"x"}


def test_one_that_vanishes_while_training_is_a_bad_slide(tmp_path: Path) -> None:
    pair = SlidePair(write_dicom(tmp_path / SERIES, texture(200, 200)), None)
    reader = PairReader(SamplerConfig("surf", img_size=64, batch_size=1))
    assert reader.read(pair, lambda opened: opened.read_image(0, 0)).shape == (64, 64, 3)
    shutil.rmtree(pair.slide)
    with pytest.raises(BadSlideError, match=re.escape(f"{SERIES}: {pair.slide}")):
        reader.read(pair, lambda opened: opened.read_image(128, 128))
    reader.close()


def test_the_check_of_a_real_one(tmp_path: Path) -> None:
    write_dicom(tmp_path / "slides" / "tumor_001", texture(1000, 700), spacing=0.5)
    broken = write_dicom(tmp_path / "slides" / "tumor_002", texture(1000, 700), spacing=0.5)
    (broken / "level_1.dcm").write_bytes((broken / "level_1.dcm").read_bytes()[:700])
    for name in ("tumor_001", "tumor_002"):
        (tmp_path / f"{name}.xml").write_text(asap_xml(LESIONS))
    pairs, warnings = find_pairs(tmp_path / "slides", tmp_path, "dcm", "xml")
    assert warnings == []
    good, bad = check_pairs(pairs, LabelMap(), 128).values()
    assert good.reasons == []
    assert good.facts.areas is not None
    assert good.facts.areas[1] == pytest.approx((120 * 130 + 3 * 4) * 0.25e-6)
    assert bad.reasons[0].startswith(f"{broken}: level_1.dcm ")
