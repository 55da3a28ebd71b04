"""Slides that are annotated in part, by their names, by a file of the user's, and by CAMELYON's known faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from samplers import SlidePair
from samplers.pairs.camelyon import itc_slides
from samplers.pairs.partly_annotated import PARTLY_16, UNFIT_16, mark_partly_annotated, read_names, without
from samplers.slides.errors import DataError
from training.data import _find
from training.option_checks import parse_options

PAIRS = [
    SlidePair(Path("A_1.tif"), Path("a.xml")),
    SlidePair(Path("b.svs"), Path("b.xml")),
    SlidePair(Path("c.tif"), None),
]


def test_the_known_faults_of_camelyon16() -> None:
    assert len(PARTLY_16) == 20
    assert {"tumor_010", "tumor_056", "tumor_110"} <= PARTLY_16
    assert {"test_049", "test_114"} == UNFIT_16


def test_a_file_names_slides_with_or_without_their_ending(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# mine\n a_1.TIF  # to be finished\n\nb\n", encoding="utf-8")
    names = read_names(path, PAIRS)
    marked = mark_partly_annotated(PAIRS, names)
    assert [pair.partly_annotated for pair in marked] == [True, True, False]
    assert without(PAIRS, names) == PAIRS[2:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a_1\nnowhere\n", "1 names are of no slide of this run: nowhere"),
        (b"c\n", "1 slides have no annotation that could be partial: c.tif"),
        (b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_names(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_names(path, PAIRS)
    assert said in str(error.value)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(*words: str) -> tuple[dict[str, bool], dict[str, bool]]:
    """Return whether each training and each validation slide is annotated in part."""
    train, val = _find(parse_options(list(words)))
    return ({p.name: p.partly_annotated for p in train}, {p.name: p.partly_annotated for p in val})


def test_dataset_16_knows_them_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tumor_010", "tumor_011"):
        touch(tmp_path, f"training/tumor/{name}.tif", f"training/lesion_annotations/{name}.xml")
    for name in ("test_001", "test_049", "test_114"):
        touch(tmp_path, f"testing/images/{name}.tif", f"testing/lesion_annotations/{name}.xml")
    words = ["--dataset", "16", "--data_root", str(tmp_path), "--label_format", "xml"]
    train, val = found(*words)
    assert train == {"tumor_010": True, "tumor_011": False}
    assert val == {"test_001": False}
    said = capsys.readouterr().err
    assert "a duplicate: test_049, test_114 (--all_annotations takes them)" in said
    assert "1 slides are annotated in part" in said
    train, val = found(*words, "--all_annotations")
    assert train == {"tumor_010": False, "tumor_011": False}
    assert sorted(val) == ["test_001", "test_049", "test_114"]
    (tmp_path / "mine.txt").write_text("tumor_011\n")
    assert found(*words, "--partly_annotated", str(tmp_path / "mine.txt"))[0] == {
        "tumor_010": True,
        "tumor_011": True,
    }


def test_isolated_tumour_cells_of_camelyon17_are_annotated_in_part(tmp_path: Path) -> None:
    for node in (1, 2):
        name = f"patient_004_node_{node}"
        touch(tmp_path, f"training/patients/{name}.tif", f"training/lesion_annotations/{name}.xml")
    words = ["--dataset", "17", "--data_root", str(tmp_path), "--label_format", "xml"]
    assert not itc_slides(tmp_path)
    assert not any(found(*words)[0].values())
    (tmp_path / "stage_labels.csv").write_text(
        "patient,stage\npatient_004.zip,pN1\npatient_004_node_1.tif,itc\npatient_004_node_2.tif,macro\n"
    )
    assert found(*words)[0] == {"patient_004_node_1": True, "patient_004_node_2": False}
    assert not any(found(*words, "--all_annotations")[0].values())
