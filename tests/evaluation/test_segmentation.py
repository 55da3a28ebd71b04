from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
import tifffile

from evaluation.boundary import BINS, distance_counts, outline
from evaluation.boundary import summarise as summarise_outlines
from evaluation.segmentation import SegmentationCounts, count_slide, count_tile, main, summarise, tiles
from samplers.labels.label import LabelMap

ALL = (slice(None), slice(None))


def half(column: int, side: int = 100) -> np.ndarray:
    """Tumour left of a column."""
    return np.broadcast_to(np.arange(side) < column, (side, side)).copy()


def blobs(seed: int, side: int = 700) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 12) > 0.02


def write_mask(path: Path, pixels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(exist_ok=True)
    image = pyvips.Image.new_from_array(pixels.astype(np.uint8)).copy(
        xres=1000 / spacing, yres=1000 / spacing
    )
    image.tiffsave(str(path), tile=True, tile_width=64, tile_height=64, compression="lzw")


def run(root: Path, *words: str) -> int:
    return main(["--predictions", str(root / "out"), "--ground_truth", str(root / "truth"), *words])


def results_of(root: Path) -> dict:
    return json.loads((root / "out/scores/segmentation.json").read_text())


def test_tiles_cover_a_picture_once() -> None:
    for width, height, side in ((100, 70, 32), (64, 64, 64), (5, 300, 7)):
        seen = np.zeros((height, width), int)
        for core, around in tiles(width, height, side, margin=10):
            seen[core] += 1
            for inner, outer, limit in zip(core, around, (height, width)):
                assert (outer.start, outer.stop) == (max(0, inner.start - 10), min(limit, inner.stop + 10))
        assert (seen == 1).all()


def test_iou_and_dice() -> None:
    # Of 4 pixels of class 1, 2 are found, and 1 that is none: IoU 2 / 5, Dice 4 / 7; class 0: 11 of 14, 22 / 25.
    truth, predicted = np.zeros((2, 4, 4), np.uint8)
    truth[0] = 1
    predicted[0, :2] = predicted[1, 0] = 1
    counts = count_tile(truth, predicted, ALL, 1.0, classes=2)
    assert counts.confusion.tolist() == [[11, 1], [2, 2]]
    result = summarise(counts, 10)
    assert result["iou"] == pytest.approx([11 / 14, 2 / 5])
    assert result["dice"] == pytest.approx([22 / 25, 4 / 7])
    assert result["miou"] == pytest.approx((11 / 14 + 2 / 5) / 2)


def test_a_class_that_does_not_occur_does_not_count() -> None:
    empty = np.zeros((4, 4), np.uint8)
    result = summarise(count_tile(empty, empty, ALL, 1.0, classes=3), 10)
    assert (result["miou"], result["iou"], result["boundary_f1"]) == (1, [1, None, None], None)


def test_the_edge_of_the_slide_is_no_outline() -> None:
    assert np.argwhere(outline(half(50)).any(axis=0)).ravel().tolist() == [49]
    assert not outline(np.ones((5, 5), bool)).any()
    assert outline(np.pad(np.ones((5, 5), bool), 1)).sum() == 16


@pytest.mark.parametrize(("shift", "spacing"), [(4, 1.0), (4, 0.25), (16, 0.5), (0, 1.0)])
def test_distance_of_outlines(shift: int, spacing: float) -> None:
    um = shift * spacing
    result = summarise_outlines(distance_counts(half(50), half(50 + shift), ALL, spacing), tolerance=um)
    assert (result["boundary_precision"], result["boundary_recall"], result["boundary_f1"]) == (1, 1, 1)
    assert (result["boundary_mean_um"], result["boundary_p95_um"]) == (um, um)
    if shift:
        missed = summarise_outlines(
            distance_counts(half(50), half(50 + shift), ALL, spacing), tolerance=um - 0.5
        )
        assert missed["boundary_f1"] == 0


def test_precision_is_of_the_prediction_and_recall_of_the_truth() -> None:
    truth, predicted = half(50), half(50)
    predicted[40:60, 80:90] = True  # an area that is not there: 2 · (20 + 10) - 4 = 56 pixels of outline
    result = summarise_outlines(distance_counts(truth, predicted, ALL, 1.0), tolerance=10)
    assert result["boundary_recall"] == 1
    assert result["boundary_precision"] == pytest.approx(100 / 156)
    assert result["boundary_f1"] == pytest.approx(2 * 100 / 156 / (1 + 100 / 156))


def test_an_outline_without_another_is_as_far_as_can_be() -> None:
    counts = distance_counts(half(50), np.zeros((100, 100), bool), ALL, 1.0)
    assert (counts[1, BINS], counts.sum()) == (100, 100)
    result = summarise_outlines(counts, tolerance=10)
    assert (result["boundary_precision"], result["boundary_recall"], result["boundary_f1"]) == (None, 0, 0)
    assert result["boundary_mean_um"] == 100


@pytest.mark.parametrize("tile", [97, 256])
def test_tiles_make_no_difference(tmp_path: Path, tile: int) -> None:
    write_mask(tmp_path / "a.tif", blobs(1), 1.0)
    write_mask(tmp_path / "b.tif", np.roll(blobs(1), 5, axis=1) | (blobs(2) & blobs(3)), 1.0)
    whole = count_slide(tmp_path / "a.tif", tmp_path / "b.tif", None, LabelMap(), tile=700)
    tiled = count_slide(tmp_path / "a.tif", tmp_path / "b.tif", None, LabelMap(), tile=tile)
    assert whole.confusion.sum() == 700**2
    np.testing.assert_array_equal(tiled.confusion, whole.confusion)
    np.testing.assert_array_equal(tiled.outlines, whole.outlines)


def test_all_slides_are_summed_then_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tumour, found in (("a", half(50), half(40)), ("b", half(200, 400), half(200, 400))):
        write_mask(tmp_path / f"truth/{name}_mask.tif", tumour)
        write_mask(tmp_path / f"out/{name}_prediction.tif", found)
        write_mask(tmp_path / f"out/{name}_probability.tif", tumour * 7)
    assert run(tmp_path) == 0
    slides = results_of(tmp_path)["slides"]
    assert list(slides) == ["a", "b", "all slides"]
    assert slides["a"]["iou"] == [50 / 60, 40 / 50]
    hit, union = 4000 + 80000, 5000 + 80000
    assert slides["all slides"]["iou"] == pytest.approx([(5000 + 80000) / (6000 + 80000), hit / union])
    assert "all slides" in capsys.readouterr().out
    rows = (tmp_path / "out/scores/segmentation.csv").read_text().splitlines()
    assert rows[0].startswith("slide,miou,boundary_precision")
    assert len(rows) == 4


def test_masks_of_255_and_predictions_of_a_lower_resolution(tmp_path: Path) -> None:
    truth = np.kron(blobs(4, 256), np.ones((4, 4), bool))
    write_mask(tmp_path / "truth/a.tif", truth * 255, 0.25)
    write_mask(tmp_path / "out/a_prediction.tif", blobs(4, 256), 1.0)
    assert run(tmp_path) == 0
    result = results_of(tmp_path)["slides"]["a"]
    assert (result["miou"], result["boundary_f1"], result["boundary_mean_um"]) == (1, 1, 0)
    assert np.sum(results_of(tmp_path)["confusion"]["a"]) == 256**2


def test_annotations_are_the_ground_truth(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mask = tifffile.imread(demo / "masks/tumor_001_mask.tif")
    write_mask(tmp_path / "out/tumor_001_prediction.tif", mask, 0.25)
    words = ["--predictions", str(tmp_path / "out"), "--ground_truth", str(demo / "xml")]
    slides = ["--slide_path", str(demo / "slides")]
    assert main([*words, *slides]) == 0
    assert results_of(tmp_path)["slides"]["tumor_001"]["miou"] == 1
    write_mask(tmp_path / "out/tumor_001_prediction.tif", mask[2::4, 2::4], 1.0)
    assert main([*words, *slides]) == 0
    assert results_of(tmp_path)["slides"]["tumor_001"]["miou"] > 0.99


def test_several_classes(tmp_path: Path) -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[:, :30], truth[:, 60:] = 1, 2
    write_mask(tmp_path / "truth/a.tif", truth)
    write_mask(tmp_path / "out/a.tif", np.where(truth == 2, 1, truth))
    assert run(tmp_path, "--label_map", "1:1", "2:2") == 0
    assert results_of(tmp_path)["slides"]["a"]["iou"] == [1, pytest.approx(3 / 7), 0]


def test_slides_without_ground_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mask(tmp_path / "truth/a.tif", half(50))
    for name in ("a", "normal_1", "other"):
        write_mask(tmp_path / f"out/{name}.tif", half(50))
    assert run(tmp_path) == 0
    assert list(results_of(tmp_path)["slides"]) == ["a", "normal_1", "all slides"]
    assert results_of(tmp_path)["slides"]["normal_1"]["iou"] == [0.5, 0]
    assert "1 predictions have no ground truth: other" in capsys.readouterr().err
    assert run(tmp_path, "--unlabelled", "normal") == 0
    assert len(results_of(tmp_path)["slides"]) == 4
    assert run(tmp_path, "--unlabelled", "error") == 2


def test_what_cannot_be_used_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    assert "out: no such folder" in capsys.readouterr().err
    write_mask(tmp_path / "truth/a.tif", half(50))
    write_mask(tmp_path / "out/a.tif", half(50, 90))
    assert run(tmp_path) == 2
    assert "90 × 90 pixels" in capsys.readouterr().err
    (tmp_path / "out/a.tif").write_bytes(b"no image")
    assert run(tmp_path) == 2
    assert "a.tif" in capsys.readouterr().err
    assert run(tmp_path, "--tolerance", "100") == 2


def test_counts_are_added() -> None:
    counts = SegmentationCounts.empty(2)
    for _ in range(2):
        counts += count_tile(half(50).astype(np.uint8), half(54).astype(np.uint8), ALL, 1.0, 2)
    assert counts.confusion.tolist() == [[9200, 800], [0, 10000]]
    assert counts.outlines.sum() == 400
