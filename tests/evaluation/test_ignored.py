"""Where the ground truth is not known nothing counts, whatever lies there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import camelyon16, segmentation
from evaluation.boundary import outline
from evaluation.segmentation import count_tile, summarise
from evaluation.truth import has_tumour, ignored_at, tumour_at
from samplers.labels.label import IGNORED, LabelMap
from tests.evaluation.test_segmentation import ALL, blobs, half
from tests.helpers.tiny_slides import write_levels
from tests.samplers.labels.test_annotations import asap

SIZE = (2048, 1536)
MAP = ("--label_map", "Tumor:1", "normal:0", "blurred:ignore")

Box = tuple[int, int, int, int]  # left, top, right, bottom


def corners(box: Box) -> list[tuple[int, int]]:
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def write_truth(path: Path, *areas: tuple[str, Box]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(asap(*(("Polygon", group, corners(box)) for group, box in areas)))


def run(program: Any, root: Path, *words: str) -> int:
    return program.main(["--predictions", str(root / "out"), "--ground_truth", str(root / "truth"), *words])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The slide and a prediction, with detections."""
    (tmp_path / "out/lesions").mkdir(parents=True)
    (tmp_path / "slides").mkdir()
    write_levels(tmp_path / "slides/a.tif", [np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)], 0.25, tile=256)
    write_levels(tmp_path / "out/a_prediction.tif", [np.zeros(SIZE[::-1], np.uint8)], 0.25, tile=256)
    return tmp_path


def all_results(root: Path, *words: str) -> dict[str, Any]:
    """Everything that the two programs compute."""
    common = (*words, "--slide_path", str(root / "slides"))
    assert run(segmentation, root, *common) == 0
    assert run(camelyon16, root, *common, "--bootstrap", "20") == 0
    paths = (root / "out/scores/segmentation.json", root / "out/lesions/scores/camelyon16.json")
    return {path.name: json.loads(path.read_text()) for path in paths}


def predict(root: Path, boxes: Sequence[Box], detections: Sequence[tuple[float, int, int]]) -> None:
    pixels = np.zeros(SIZE[::-1], np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 1
    write_levels(root / "out/a_prediction.tif", [pixels], 0.25, tile=256)
    (root / "out/lesions/a.csv").write_text("".join(f"{c},{x},{y}\n" for c, x, y in detections))


KNOWN, BLURRED = (64, 64, 1300, 400), (800, 300, 1500, 1100)
FOUND = [(100, 100, 1250, 390), (1700, 1200, 1760, 1260)]
DETECTIONS = [(0.9, 200, 200), (0.8, 1800, 1300), (0.7, 1000, 1000)]


def test_what_lies_below_an_ignored_region_changes_nothing(root: Path) -> None:
    predict(root, FOUND, DETECTIONS)
    found = []
    for below in (
        [],
        [("Tumor", BLURRED)],
        [("Tumor", (850, 500, 900, 600)), ("normal", (1000, 700, 1100, 1100))],
    ):
        write_truth(root / "truth/a.xml", ("Tumor", KNOWN), *below, ("blurred", BLURRED))
        found.append(all_results(root, *MAP))
    assert found[0] == found[1] == found[2]
    confusion = np.array(found[0]["segmentation.json"]["confusion"]["a"])
    assert confusion.sum() == SIZE[0] * SIZE[1] - 700 * 800
    assert found[0]["camelyon16.json"]["false_positives"] == 1
    assert found[0]["camelyon16.json"]["detections_ignored"] == 1
    # Nor what is predicted there.
    predict(root, [*FOUND, (900, 400, 1450, 1050)], [*DETECTIONS, (0.95, 1200, 900)])
    again = all_results(root, *MAP)
    assert again["segmentation.json"] == found[0]["segmentation.json"]
    assert again["camelyon16.json"]["detections_ignored"] == 2
    scores = [result["camelyon16.json"] for result in (found[0], again)]
    for name in ("froc_official", "froc_corrected", "false_positives", "lesions", "lesions_found"):
        assert scores[0][name] == scores[1][name]
    # But it does where it is known.
    write_truth(root / "truth/a.xml", ("Tumor", KNOWN), ("Tumor", BLURRED))
    assert all_results(root, *MAP) != found[0]


def test_what_is_not_annotated_may_be_ignored(root: Path) -> None:
    predict(root, FOUND, DETECTIONS)
    write_truth(root / "truth/a.xml", ("normal", (1600, 1100, 1900, 1400)), ("Tumor", KNOWN))
    result = all_results(root, *MAP, "--unannotated", "ignore")
    confusion = result["segmentation.json"]["confusion"]["a"]
    assert np.sum(confusion) == 300 * 300 + 1236 * 336
    assert confusion[0] == [300 * 300 - 60 * 60, 60 * 60]
    scores = result["camelyon16.json"]
    assert (scores["false_positives"], scores["detections_ignored"], scores["lesions_found"]) == (1, 1, 1)
    # Without the slide what lies beyond the outlines is not known either.
    predict(root, FOUND, [*DETECTIONS, (0.6, 40_000, 40_000)])
    assert run(camelyon16, root, *MAP, "--unannotated", "ignore", "--bootstrap", "0") == 0
    scores = json.loads((root / "out/lesions/scores/camelyon16.json").read_text())
    assert (scores["false_positives"], scores["detections_ignored"]) == (1, 2)


@pytest.mark.parametrize("levels", [1, 6])
def test_values_of_masks_may_be_ignored(root: Path, levels: int) -> None:
    predict(root, FOUND, DETECTIONS)
    values = np.zeros(SIZE[::-1], np.uint8)
    for value, (left, top, right, bottom) in ((1, KNOWN), (255, BLURRED)):
        values[top:bottom, left:right] = value
    (root / "truth").mkdir()
    pyramid = [np.ascontiguousarray(values[2**n // 2 :: 2**n, 2**n // 2 :: 2**n]) for n in range(levels)]
    write_levels(root / "truth/a_mask.tif", pyramid, 0.25, tile=256)
    mask = all_results(root, "--label_map", "1:1", "255:ignore")
    (root / "truth/a_mask.tif").unlink()
    write_truth(root / "truth/a.xml", ("Tumor", KNOWN), ("blurred", BLURRED))
    outlines = all_results(root, *MAP)
    assert mask["segmentation.json"] == outlines["segmentation.json"]
    names = ("lesions_found", "false_positives", "detections_ignored")
    assert [mask["camelyon16.json"][n] for n in names] == [outlines["camelyon16.json"][n] for n in names]


def test_averages_of_classes_are_not_taken_for_classes(tmp_path: Path) -> None:
    values = np.zeros((1024, 1024), np.uint8)
    values[:500] = 255
    coarse = np.full((32, 32), 0, np.uint8)
    coarse[:15], coarse[15] = 255, 160  # as means are; in between there is no class 160
    write_levels(tmp_path / "a.tif", [values, coarse], 0.25, tile=256)
    label_map = LabelMap.parse(["1:1", "255:ignore"])
    assert not tumour_at(tmp_path / "a.tif", 32, label_map).any()
    assert ignored_at(tmp_path / "a.tif", 32, label_map).sum() == 32 * 16


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=40, deadline=None)
def test_tiles_count_known_pixels_only(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    classes = data.draw(st.sampled_from([2, 3]))
    truth, predicted = ((blobs(seed + i, 120) * rng.integers(1, classes)).astype(np.uint8) for i in range(2))
    unknown = blobs(seed + 2, 120)
    one = count_tile(np.where(unknown, IGNORED, truth).astype(np.uint8), predicted, ALL, 1.0, classes)
    other = rng.integers(0, classes, predicted.shape).astype(np.uint8)
    two = count_tile(
        np.where(unknown, IGNORED, truth).astype(np.uint8),
        np.where(unknown, other, predicted),
        ALL,
        1.0,
        classes,
    )
    assert one.confusion.sum() == np.count_nonzero(~unknown)
    np.testing.assert_array_equal(one.confusion, two.confusion)
    np.testing.assert_array_equal(one.outlines, two.outlines)
    perfect = count_tile(
        np.where(unknown, IGNORED, truth).astype(np.uint8), np.where(unknown, other, truth), ALL, 1.0, classes
    )
    assert summarise(perfect, 0)["boundary_f1"] in (None, 1)
    assert summarise(perfect, 0)["miou"] == 1


def test_the_edge_of_what_is_known_is_no_outline() -> None:
    known = ~half(30)
    assert np.argwhere(outline(half(50), known).any(axis=0)).ravel().tolist() == [49]
    assert not outline(half(50), known & half(50)).any()


def test_a_slide_that_is_not_known_at_all_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(root, FOUND, DETECTIONS)
    write_truth(root / "truth/a.xml", ("blurred", (0, 0, *SIZE)))
    words = (*MAP, "--slide_path", str(root / "slides"))
    assert run(segmentation, root, *words) == 0
    assert "a.xml: no pixel of the slide is known" in capsys.readouterr().err
    found = json.loads((root / "out/scores/segmentation.json").read_text())["slides"]["a"]
    assert (found["miou"], found["boundary_f1"]) == (None, None)
    assert run(camelyon16, root, *words) == 2
    assert "no slide has a pixel that is known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("areas", "unannotated", "expected"),
    [
        ([("Tumor", KNOWN)], "background", True),
        ([("Tumor", KNOWN), ("blurred", BLURRED)], "background", True),
        ([("Tumor", (900, 400, 950, 450)), ("blurred", BLURRED)], "background", None),  # it is below
        ([("blurred", BLURRED)], "background", None),
        ([("normal", KNOWN)], "background", False),
        ([("normal", KNOWN)], "ignore", None),
        ([("Tumor", KNOWN)], "ignore", True),
    ],
)
def test_whether_a_slide_has_tumour(
    tmp_path: Path, areas: list[tuple[str, Box]], unannotated: str, expected: bool | None
) -> None:
    write_truth(tmp_path / "a.xml", *areas)
    assert has_tumour(tmp_path / "a.xml", LabelMap.parse(MAP[1:], unannotated)) is expected
    values = np.zeros(SIZE[::-1], np.uint8)
    for group, (left, top, right, bottom) in areas:
        values[top:bottom, left:right] = {"Tumor": 1, "normal": 2, "blurred": 255}[group]
    write_levels(tmp_path / "a.tif", [values], 0.25, tile=256)
    label_map = LabelMap.parse(["1:1", "2:0", "255:ignore"], unannotated)
    assert has_tumour(tmp_path / "a.tif", label_map) is expected


def test_slides_that_may_have_tumour_are_no_negatives_of_the_auc(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(root, FOUND, DETECTIONS)
    write_truth(root / "truth/a.xml", ("Tumor", KNOWN))
    for name in ("b", "normal_1"):
        write_truth(root / f"truth/{name}.xml", ("blurred", BLURRED))
    (root / "out/slides.csv").write_text("slide,probability\na,0.5\nb,0.9\nnormal_1,0.2\nnormal_2,0.1\n")
    assert run(camelyon16, root, *MAP, "--bootstrap", "0") == 0
    assert "1 slides do not count in the AUC" in capsys.readouterr().err.replace("\n", " ")
    auc = json.loads((root / "out/lesions/scores/camelyon16.json").read_text())["slide_auc"]
    assert (auc["auc"], auc["tumour"], auc["normal"]) == (1, 1, 2)


def test_outlines_that_cannot_be_used_are_refused_here_as_well(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(root, FOUND, DETECTIONS)
    slides = ("--slide_path", str(root / "slides"))
    for group, reason in (("None", "belongs to a group"), ("metastasis", "not in the label map: metastasis")):
        write_truth(root / "truth/a.xml", (group, KNOWN))
        for program in (segmentation, camelyon16):
            assert run(program, root, *slides) == 2
            assert reason in capsys.readouterr().err
    write_truth(root / "truth/a.xml", ("Tumor", KNOWN), ("stroma", BLURRED))
    for program in (segmentation, camelyon16):
        assert run(program, root, *slides) == 0
        assert capsys.readouterr().err.count("groups that are not in the label map: stroma") == 1
