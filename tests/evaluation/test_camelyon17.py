from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import pyvips

from evaluation.camelyon17 import kappa, main
from evaluation.lesions import find_lesions, longest_diameter, node_label
from evaluation.staging import patient_stage, read_stages, stages_of_nodes
from samplers.slides.errors import DataError

N, I, M, A = "negative", "itc", "micro", "macro"

TRUTH = """patient,stage
patient_000.zip,pN0
patient_000_node_0.tif,negative
patient_000_node_1.tif,negative
patient_001.zip,pN0
patient_002.zip,pN1
patient_002_node_0.tif,macro
patient_003.zip,pN2
"""


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        ([N, N, N, N, N], "pn0"),
        ([I, N, N, N, N], "pn0(i+)"),
        ([I, I, I, I, I], "pn0(i+)"),
        ([M, N, N, N, N], "pn1mi"),
        ([M, M, M, M, M], "pn1mi"),
        ([M, I, I, I, I], "pn1mi"),
        ([A, N, N, N, N], "pn1"),
        ([A, M, M, N, N], "pn1"),
        ([A, A, A, N, N], "pn1"),
        ([A, M, M, I, I], "pn1"),  # nodes with isolated tumour cells are not counted
        ([A, M, M, M, N], "pn2"),
        ([A, A, A, A, A], "pn2"),
    ],
)
def test_stages(nodes: list[str], stage: str) -> None:
    assert patient_stage(nodes) == patient_stage(nodes[::-1]) == stage


def test_unknown_node_labels() -> None:
    with pytest.raises(ValueError, match="not huge"):
        patient_stage([N, "huge"])
    with pytest.raises(ValueError, match="none at all"):
        patient_stage([])


@pytest.mark.parametrize(
    ("diameter", "label"), [(0, N), (0.001, I), (0.2, I), (0.2001, M), (2.0, M), (2.0001, A), (9, A)]
)
def test_node_labels(diameter: float, label: str) -> None:
    assert node_label(diameter) == label


def test_kappa() -> None:
    # Weights (i - j)²: observed 0 + 4 + 0 + 1 = 5, by chance (2 · 22 + 10 + 22) / 4 = 19.
    truth, predicted = ["pn0", "pn0", "pn1", "pn2"], ["pn0", "pn1mi", "pn1", "pn1"]
    assert kappa(truth, predicted) == pytest.approx(14 / 19, abs=1e-15)
    assert kappa(truth, truth) == 1
    assert kappa(["pn0", "pn1"], ["pn1", "pn0"]) == -1
    assert math.isnan(kappa(["pn0", "pn0"], ["pn0", "pn0"]))


def test_scores_of_a_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.csv").write_text(TRUTH)
    # In any case and order; a patient and a node more than in the ground truth.
    (tmp_path / "mine.csv").write_text(
        "patient,stage\npatient_003.zip,PN1\npatient_002.zip,pn1\npatient_001.zip,pN1mi\npatient_000.zip,pN0\n"
        "patient_009.zip,pN2\npatient_000_node_0.tif,itc\npatient_002_node_0.tif,macro\n"
    )
    assert run(tmp_path, "mine.csv") == 0
    summary = scores_of(tmp_path)
    assert summary["kappa"] == pytest.approx(14 / 19, abs=1e-15)
    assert summary["confusion"] == [
        [1, 0, 1, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 1, 0], [0, 0, 0, 1, 0]
    ]  # fmt: skip
    assert (summary["nodes"]["nodes"], summary["nodes"]["accuracy"]) == (2, 0.5)
    assert "quadratic weighted kappa 0.7368" in capsys.readouterr().out


def run(root: Path, name: str, *words: str) -> int:
    paths = [
        "--predictions",
        str(root / name),
        "--ground_truth",
        str(root / "truth.csv"),
        "--output",
        str(root / "out"),
    ]
    return main([*paths, "--bootstrap", "50", *words])


def scores_of(root: Path) -> dict:
    return json.loads((root / "out/camelyon17.json").read_text())


def test_stages_are_worked_out_of_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.csv").write_text("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN1\n")
    rows = [f"patient_000_node_{i}.tif,negative" for i in range(5)]
    rows += [f"patient_001_node_{i}.tif,{label}" for i, label in enumerate([A, M, I, N])]
    (tmp_path / "mine.csv").write_text("\n".join(["patient,stage", *rows]))
    assert run(tmp_path, "mine.csv") == 0
    assert scores_of(tmp_path)["kappa"] == 1
    assert "patient_001 (4)" in capsys.readouterr().err
    with (tmp_path / "out/submission.csv").open() as file:
        assert [row[1] for row in csv.reader(file)] == ["stage", "pN0", *[N] * 5, "pN1", A, M, I, N]
    assert read_stages(tmp_path / "out/submission.csv")[0] == {"patient_000": "pn0", "patient_001": "pn1"}


def test_patients_of_excluded_slides_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "mine.csv").write_text(TRUTH.replace("pN1", "pN0").replace("macro", "negative"))
    words = ["--predictions", str(tmp_path / "mine.csv"), "--ground_truth", str(tmp_path / "truth.csv")]
    assert main([*words, "--bootstrap", "0", "--exclude", "PATIENT_002_node_0.tif"]) == 0
    result = json.loads((tmp_path / "scores/camelyon17.json").read_text())
    assert (result["patients"], result["kappa"]) == (3, 1)
    assert result["nodes"]["nodes"] == 2


def test_the_table_of_predict(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text(
        "slide,probability,diameter_mm,node_label\npatient_000_node_0,0.9,2.5,macro\npatient_000_node_1,0.1,0,negative\n"
    )
    assert stages_of_nodes(read_stages(tmp_path / "slides.csv")[1]) == {"patient_000": "pn1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_000.zip,pN0\n", "first line is not patient,stage"),
        ("", "first line is not patient,stage but missing"),
        ("patient,stage\npatient_000.zip,pN3\n", "line 2: 'pN3' is no stage"),
        ("patient,stage\npatient_000_node_1.tif,pN0\n", "line 2: 'pN0' is no node label"),
        ("patient,stage\na.zip,pN0\nA.zip,pN0\n", "line 3: A.zip is there twice"),
        ("patient,stage\na.zip\n", "line 2: 'a.zip' has no stage"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_stages(tmp_path / "a.csv")


def test_what_cannot_be_used_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "mine.csv").write_text("patient,stage\npatient_000.zip,pN0\npatient_002.zip,pN0\n")
    assert run(tmp_path, "mine.csv") == 2
    assert "2 of 4 patients are not in the predictions: patient_001, patient_003" in capsys.readouterr().err
    assert run(tmp_path, "nothing.csv") == 2
    assert "nothing.csv" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert run(tmp_path, "folder") == 2
    assert "no *_probability.tif" in capsys.readouterr().err
    for words in (("--threshold", "0"), ("--merge_distance", "-1"), ("--min_diameter", "-1")):
        assert run(tmp_path, "folder", *words) == 2
        assert "must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--threshold", "--merge_distance", "--min_diameter"])
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for name in ("truth.csv", "mine.csv"):
        (tmp_path / name).write_text(TRUTH)
    assert run(tmp_path, "mine.csv", option, "0.5") == 2
    assert f"{option}: only for a folder of *_probability.tif" in capsys.readouterr().err
    assert run(tmp_path, "mine.csv") == 0


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (["unknown", N, N, N, N], None),
        (["unknown", A, M, M, N], None),
        (["unknown", A, N, N, N], "pn1"),
        (["unknown", A, M, M, M], "pn2"),
        (["unknown"] * 5, None),
        (["unknown", "unknown", A, N, N], "pn1"),
        (["unknown", "unknown", "unknown", A, N], None),
    ],
)
def test_an_unknown_node_is_not_negative(nodes: list[str], stage: str | None) -> None:
    found = stages_of_nodes({f"patient_1_node_{i}": label for i, label in enumerate(nodes)})
    assert found.get("patient_1") == stage
    every = itertools.product(*([label] if label != "unknown" else [N, I, M, A] for label in nodes))
    possible = {patient_stage(labels) for labels in every}
    assert possible == {stage} if stage else len(possible) > 1


def test_patients_of_unknown_nodes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.csv").write_text(
        "patient,stage\npatient_0.zip,pN1\npatient_1.zip,pN0\npatient_0_node_0.tif,unknown\n"
        "patient_0_node_1.tif,macro\n"
    )
    rows = {f"patient_{p}_node_{i}": N for p in (0, 1) for i in range(5)} | {"patient_0_node_1": A}

    def write(changed: dict[str, str]) -> None:
        text = "\n".join(f"{node}.tif,{label}" for node, label in {**rows, **changed}.items() if label)
        (tmp_path / "mine.csv").write_text(f"patient,stage\n{text}\n")

    write({"patient_0_node_0": "Unknown"})  # with one macro, four others cannot make it pN2
    assert run(tmp_path, "mine.csv") == 0
    assert scores_of(tmp_path)["nodes"]["nodes"] == 1  # the one that both know
    write({"patient_1_node_3": "unknown"})
    assert run(tmp_path, "mine.csv") == 2
    error = capsys.readouterr().err
    assert "stage depends on a node that is unknown: patient_1" in error
    assert "1 of 2 patients are not in the predictions: patient_1" in error
    write({"patient_0_node_0": ""})  # not predicted
    assert run(tmp_path, "mine.csv") == 2
    assert (
        "1 nodes of the ground truth are not in the predictions: patient_0_node_0" in capsys.readouterr().err
    )


def test_one_stage_only_has_no_kappa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("truth.csv", "mine.csv"):
        (tmp_path / name).write_text("patient,stage\npatient_000.zip,pN0\n")
    assert run(tmp_path, "mine.csv") == 0
    assert "kappa undefined" in capsys.readouterr().out
    assert scores_of(tmp_path)["kappa"] is None


def test_nodes_of_probability_maps(tmp_path: Path) -> None:
    # At 1 µm/px: 2400 µm, 400 µm, 160 µm, 40 µm (too small) and nothing.
    for node, side in enumerate((1700, 283, 113, 28, 0)):
        pixels = np.zeros((1920, 1920), np.uint8)
        pixels[100 : 100 + side, 100 : 100 + side] = 200
        image = pyvips.Image.new_from_array(pixels).copy(xres=1000, yres=1000)
        path = tmp_path / f"patient_004_node_{node}_probability.tif"
        image.tiffsave(str(path), tile=True, pyramid=True, tile_width=128, tile_height=128, compression="lzw")
    (tmp_path / "truth.csv").write_text("patient,stage\npatient_004.zip,pN1\npatient_004_node_0.tif,macro\n")
    assert run(tmp_path, "") == 0
    with (tmp_path / "out/submission.csv").open() as file:
        assert [row[1] for row in csv.reader(file)] == ["stage", "pN1", A, M, I, N, N]
    assert run(tmp_path, "", "--threshold", "0.9") == 0
    with (tmp_path / "out/submission.csv").open() as file:
        assert [row[1] for row in csv.reader(file)] == ["stage", "pN0", N, N, N, N, N]


def test_longest_diameter_is_from_corner_to_corner() -> None:
    inside = np.zeros((50, 50), bool)
    assert longest_diameter(inside) == 0
    inside[10, 5:35] = True
    assert longest_diameter(inside) == pytest.approx(np.hypot(30, 1))
    inside[10:50, 5] = True
    assert longest_diameter(inside) == pytest.approx(50)  # (35, 10) to (5, 50)


def test_lesions_of_a_map() -> None:
    probability = np.zeros((100, 200), np.float32)
    probability[10:30, 10:30] = 0.8
    probability[10:30, 36:56] = 0.6  # 6 pixels of 10 µm apart: one lesion
    probability[60:90, 100:140] = 0.9
    probability[95, 5] = 1  # 14 µm long: left out
    (first, second), labels = find_lesions(probability, spacing=10, downsample=40)
    assert (first.area, second.area) == (800 * 100, 1200 * 100)
    assert first.diameter == pytest.approx(10 * np.hypot(46, 20))
    assert second.diameter == pytest.approx(10 * 50)
    assert (first.confidence, second.confidence) == (pytest.approx(0.7), pytest.approx(0.9))
    assert labels[20, 33] == 0  # what joins them is not tumour
    assert labels[int(second.y / 40), int(second.x / 40)] == second.label
    assert second.y == pytest.approx(75 * 40, abs=40)
    assert np.unique(labels).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("gap", "count"), [(6, 1), (7, 2)])
def test_lesions_are_merged_as_camelyon16_does(gap: int, count: int) -> None:
    probability = np.zeros((40, 80), np.uint8)  # at 10 µm each grows by the 3 whole pixels in 75 / 2 µm
    probability[10:30, 10:30] = probability[10:30, 30 + gap : 50 + gap] = 255
    assert len(find_lesions(probability, spacing=10)[0]) == count
    assert len(find_lesions(probability, spacing=10, merge=0)[0]) == 2


def test_bytes_and_fractions_are_the_same_and_nothing_is_no_lesion() -> None:
    values = np.full((20, 20), 128, np.uint8)
    (lesion,), _ = find_lesions(values, spacing=10)
    assert lesion.confidence == pytest.approx(128 / 255)
    assert lesion.diameter == pytest.approx(200 * np.sqrt(2))
    assert len(find_lesions(values / 255, spacing=10)[0]) == 1
    assert find_lesions(values - 1, spacing=10)[0] == []
    assert find_lesions(values, spacing=10, min_diameter=300)[0] == []
