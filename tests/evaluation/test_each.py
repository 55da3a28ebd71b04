"""All evaluations: no slide is free of tumour for want of a name, and one slide's failure ends no other."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation import camelyon16, camelyon17, segmentation
from evaluation.each import refuse_unpaired
from samplers.slides.errors import DataError
from tests.helpers.tiny_slides import write_levels


def write_mask(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    tumour = np.zeros((2048, 2048), np.uint8)
    tumour[256:1600, 256:1600] = 255
    cv2.imwrite(str(path), tumour)


def case(root: Path, *pairs: tuple[str, str | None]) -> Path:
    """Predictions and their ground truth, by name: of each slide a mask, and a hit in its lesion."""
    for name, truth in pairs:
        (root / "lesions").mkdir(exist_ok=True)
        (root / "lesions" / f"{name}.csv").write_text("0.9,800,800\n")
        write_mask(root / "masks" / f"{name}_prediction.png")
        if truth is not None:
            write_mask(root / "truth" / truth)
    return root


def froc(root: Path, *words: str) -> int:
    folders = ["--predictions", str(root / "lesions"), "--ground_truth", str(root / "truth")]
    return camelyon16.main([*folders, "--output", str(root / "out"), "--bootstrap", "0", *words])


def pixels(root: Path, *words: str) -> int:
    folders = ["--predictions", str(root / "masks"), "--ground_truth", str(root / "truth")]
    return segmentation.main([*folders, "--output", str(root / "out"), *words])


def results(root: Path, name: str) -> dict:
    return json.loads((root / "out" / f"{name}.json").read_text())


def test_truth_is_paired_as_in_training(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Präparat_1") for form in ("NFC", "NFD"))
    root = case(tmp_path, (composed, f"{apart}.png"), ("b", "b.svs.png"), ("c", "c_annotations.png"))
    (root / "scores.csv").write_text(f"image,probability\n{apart}.tif,0.9\nB.svs,0.9\nc,0.8\n")
    assert froc(root, "--slide_scores", str(root / "scores.csv")) == 0
    found = results(root, "camelyon16")
    assert (found["lesions"], found["lesions_found"], found["slide_auc"]["tumour"]) == (3, 3, 3)
    assert pixels(root) == 0
    assert results(root, "segmentation")["slides"]["all slides"]["dice"] == [1, 1]


@pytest.mark.parametrize("program", [froc, pixels])
def test_no_slide_is_free_of_tumour_for_want_of_a_name(program, tmp_path, capsys):
    root = case(tmp_path, ("a", "a.png"), ("b", "b lesions.png"))
    assert program(root, "--unlabelled", "normal") == 2
    said = capsys.readouterr().err
    assert "1 slides have no ground truth: b; 1 of the ground truth have no slide: b lesions" in said
    (root / "truth" / "b lesions.png").unlink()
    assert program(root, "--unlabelled", "error") == 2
    assert program(root, "--unlabelled", "normal") == 0


def test_slide_scores_are_paired_as_well(tmp_path, capsys):
    root = case(tmp_path, ("a", "a.png"), ("normal_1", None))
    (root / "scores.csv").write_text("image,probability\na,0.9\nnormal_1,0.1\nb,0.8\n")
    assert froc(root, "--slide_scores", str(root / "scores.csv")) == 2
    assert "1 slides have no ground truth: b." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("slides", "truth", "unlabelled", "refused"),
    [
        ("tumor_001 normal_001 test_002", "tumor_001 test_001", "error", ""),
        ("tumor_001 tumor_002", "tumor_001", "normal", "tumor_002"),
        ("test_001 test_002", "test_001 test_002 lesion", "error", "test_002"),
        ("test_001 test_002", "test_001 test_002 lesion", "normal", "test_002"),
        ("a b", "a", "error", "b"),
        ("a b", "a", "normal", ""),
        ("a b", "a b_1", "normal", "b"),
        ("a normal_b", "a b_1", "error", ""),
    ],
)
def test_which_slides_are_free_of_tumour(slides, truth, unlabelled, refused):
    names = [
        {name.replace("+", " ") for name in text.replace(" lesion", "+lesion").split()}
        for text in (slides, truth)
    ]
    if not refused:
        return refuse_unpaired(*names, unlabelled)
    with pytest.raises(DataError, match=f"1 slides have no ground truth: {refused}"):
        refuse_unpaired(*names, unlabelled)


def breaking(name: str, real: Callable, error: BaseException) -> Callable:
    """The function, but for the slide of this name."""

    def function(path: Path, *more: object) -> object:
        if path.stem.startswith(name):
            raise error
        return real(path, *more)

    return function


@pytest.mark.parametrize(
    ("program", "place", "name"),
    [
        (froc, "evaluation.camelyon16.tumour_at", "camelyon16"),
        (pixels, "evaluation.segmentation.count_slide", "segmentation"),
    ],
)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("of the test"), "failed: ZeroDivisionError: of the test"),
        (DataError("gone"), "gone"),
    ],
)
def test_one_slides_failure_ends_no_other(program, place, name, error, reason, tmp_path, monkeypatch, capsys):
    root = case(tmp_path, ("a", "a.png"), ("b", "b.png"))
    module, _, function = place.rpartition(".")
    real = getattr(camelyon16 if "16" in module else segmentation, function)
    monkeypatch.setattr(place, breaking("b", real, error))
    assert program(root) == 1
    assert f"bad slide, left out: b: {reason}" in capsys.readouterr().err
    found = results(root, name)
    assert found["failed"] == {"b": reason}
    assert "b" not in found["slides"] if name == "segmentation" else found["slides"] == 1
    log = root / "out" / "failures.log"
    assert log.exists() == (reason != "gone")
    assert not log.exists() or "Traceback" in log.read_text()
    monkeypatch.setattr(place, breaking("", real, error))
    assert program(root) == 2  # none is left
    assert "no slide could be evaluated:\n  a: " in capsys.readouterr().err
    for end in (MemoryError, KeyboardInterrupt):
        monkeypatch.setattr(place, breaking("b", real, end()))
        with pytest.raises(end):
            program(root)


@pytest.mark.parametrize("program", [froc, pixels])
def test_a_damaged_mask_and_a_link_to_nothing_are_named_and_the_others_evaluated(program, tmp_path, capsys):
    root = case(tmp_path, ("a", "a.png"), ("b", "b.png"), ("c", "c.png"))
    (root / "truth" / "b.png").write_bytes(b"no picture")
    (root / "truth" / "c.png").unlink()
    (root / "truth" / "c.png").symlink_to("nowhere.png")
    (root / "truth" / "d.czi").touch()
    (root / "truth" / "more").mkdir()
    (root / "truth" / "more" / "e.png").touch()
    assert program(root) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: b: " in said
    assert "bad slide, left out: c: " in said
    assert "1 other files are left out (1 .czi; " in said
    assert "1 subfolders with files of this format are not searched" in said


def test_a_patient_of_whom_a_node_fails_is_left_out(tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    rows = []
    for patient in ("patient_000", "patient_001"):
        rows.append(f"{patient}.zip,pN0")
        for node in range(5):
            rows.append(f"{patient}_node_{node}.tif,negative")
            path = tmp_path / "maps" / f"{patient}_node_{node}_probability.tif"
            write_levels(path, [np.zeros((64, 64), np.uint8)])
    (tmp_path / "maps" / "patient_001_node_2_probability.tif").write_bytes(b"no map")
    (tmp_path / "maps" / "._patient_001_node_2_probability.tif").write_bytes(b"of another system")
    (tmp_path / "truth.csv").write_text("\n".join(["patient,stage", *rows]))
    words = ["--predictions", str(tmp_path / "maps"), "--ground_truth", str(tmp_path / "truth.csv")]
    assert camelyon17.main([*words, "--output", str(tmp_path / "out"), "--bootstrap", "0"]) == 1
    assert "bad slide, left out: patient_001_node_2: " in capsys.readouterr().err
    found = results(tmp_path, "camelyon17")
    assert (found["patients"], found["nodes"]["nodes"], list(found["failed"])) == (
        1,
        5,
        ["patient_001_node_2"],
    )
