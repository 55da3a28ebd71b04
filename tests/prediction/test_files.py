"""Lesions, outlines, pyramids and tables: exact, and readable by viewers and the evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import closing

import numpy as np
import openslide
import pytest
import pyvips
import shapely
import tifffile

from evaluation import camelyon16, segmentation
from evaluation.tables import read_detections
from predict import main
from prediction.outlines import without_islands
from samplers.labels.annotations import read_asap, read_geojson
from samplers.labels.label import LabelMap, open_label
from samplers.slides.slide import Slide
from tests.helpers.predicting import pixels, record, words
from tests.helpers.tiny_slides import write_levels
from tests.helpers.toy_predictors import rings, slide_with


def test_threshold_and_smallest_lesion(toys, slides, tmp_path, whole):
    # 60 × 65 µm: a diagonal of 88.
    assert record(whole, "tumor_001")["diameter_mm"] == pytest.approx(np.hypot(60, 65) / 1000, abs=1e-6)
    assert record(whole, "tumor_001")["area_mm2"] == pytest.approx(60 * 65 / 1e6)
    assert record(whole, "tumor_001")["node_label"] == "itc"
    assert pixels(whole, "tumor_001", "prediction").sum() == 120 * 130  # without the other, of 2 µm
    # The slide's probability is the mean over a square as large as the smallest lesion.
    for value, lesions, probability in (("0.09", 0, 60 * 65 / 90**2), ("0.001", 2, 1)):
        out = tmp_path / value
        assert main(words(toys / "lesion", slides / "tumor_001.tif", out, "--min_lesion_mm", value)) == 0
        assert record(out, "tumor_001")["lesions"] == lesions
        (row,) = csv.DictReader((out / "slides.csv").read_text().splitlines())
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)
        assert pixels(out, "tumor_001", "prediction").any() == (lesions > 0)
    out = tmp_path / "threshold"
    assert main(words(toys / "red", slides / "tumor_001.tif", out, "--threshold", "0.99")) == 0
    np.testing.assert_array_equal(
        pixels(out, "tumor_001", "prediction"), pixels(whole, "tumor_001", "prediction")
    )


def test_outlines_and_prediction_are_the_same_mask(slides, whole):
    truth = rings()
    truth[600:603, 700:704] = False  # the speck
    with Slide(slides / "tumor_002.tif") as slide:
        for name in ("tumor_002_prediction.tif", "tumor_002.xml", "tumor_002.geojson"):
            with closing(open_label(whole / name, slide, LabelMap())) as label:
                assert label.left_out == []
                np.testing.assert_array_equal(label.read_at(0, 0, 1000, 700, 1.0), truth, err_msg=name)
    features = json.loads((whole / "tumor_002.geojson").read_text())["features"]
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["Tumor"] * 3
    groups = [outline.group for outline in read_asap(whole / "tumor_002.xml")[0]]
    assert groups.count("Tumor") == 5  # the ring in two parts, its island, two that touch by a corner
    assert set(groups) == {"Tumor", "Exclusion"}


def test_outlines_over_several_windows_are_joined(slides, whole, toys, tmp_path, monkeypatch):
    monkeypatch.setattr("prediction.outlines.WINDOW", 64)
    assert main(words(toys / "lesion", slides, tmp_path)) == 0
    for ours, theirs in ((read_geojson, "tumor_002.geojson"), (read_asap, "tumor_002.xml")):
        one, other = (ours(folder / theirs)[0] for folder in (whole, tmp_path))
        if theirs.endswith("geojson"):  # where a window ends a hole may be opened in another row
            assert len(one) == len(other)
        for group in {outline.group for outline in one}:
            areas = [
                shapely.union_all([o.geometry for o in part if o.group == group]) for part in (one, other)
            ]
            assert areas[0].equals(areas[1])


@pytest.mark.parametrize("cells", [50_000, 5_000])
def test_what_is_found_on_cells_is_exact_in_pixels(cells, slides, whole, toys, tmp_path, monkeypatch):
    monkeypatch.setattr("prediction.lesions.MAX_CELLS", cells)
    assert main(words(toys / "lesion", slides, tmp_path)) == 0
    for slide in ("tumor_001", "tumor_002", "normal_001"):
        for kind in ("prediction", "probability"):
            np.testing.assert_array_equal(pixels(tmp_path, slide, kind), pixels(whole, slide, kind))
        for key in ("diameter_mm", "area_mm2", "node_label", "lesions"):
            assert record(tmp_path, slide)[key] == record(whole, slide)[key]
        for hit in read_detections(tmp_path / "lesions" / f"{slide}.csv"):
            assert pixels(whole, slide, "prediction")[int(hit.y), int(hit.x)]


def test_several_classes(toys, slides, tmp_path, capsys):
    model = shutil.copytree(toys / "three", tmp_path / "run" / "model")
    options = {"label_map": ["tumour:2", "stroma:1"], "resolution": None, "img_size": 128}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    out = tmp_path / "out"
    more = ("--img_size", "128", "--min_lesion_mm", "0.0001")
    coarse = np.random.default_rng(0).choice([60, 150, 255], (35, 50)).repeat(20, axis=0).repeat(20, axis=1)
    image = np.stack([coarse, coarse // 4, coarse // 2], -1).astype(np.uint8)
    write_levels(tmp_path / "mixed.tif", [image], 0.5)
    assert main(words(model, tmp_path / "mixed.tif", out, *more)) == 0
    expected = (coarse > 100).astype(int) + (coarse > 200)
    with Slide(tmp_path / "mixed.tif") as slide:
        np.testing.assert_array_equal(pixels(out, "mixed", "prediction"), expected)
        label_map = LabelMap.parse(["stroma:1", "tumour:2", "Exclusion:0"])
        for name in ("mixed.xml", "mixed.geojson"):
            with closing(open_label(out / name, slide, label_map)) as label:
                np.testing.assert_array_equal(label.read_at(0, 0, 1000, 700, 1.0), expected, err_msg=name)
    assert main(words(model, slides / "tumor_002.tif", tmp_path / "t", *more, "--threshold", "0.3")) == 2
    assert "--threshold is for two classes" in capsys.readouterr().err


def test_a_polygon_is_cut_where_something_lies_in_its_hole():
    hole, empty = shapely.box(2, 2, 18, 18), shapely.box(20, 20, 25, 26)
    ring = shapely.Polygon(shapely.box(0, 0, 30, 30).exterior, [hole.exterior, empty.exterior])
    island = shapely.box(5, 5, 9, 9)
    holes, (parts, same) = without_islands([ring, island])
    assert same == [island]
    assert len(parts) == 2
    assert shapely.union_all(parts).equals(ring)
    assert [found.equals(empty) for found in holes] == [True]
    assert not any(shapely.Polygon(part.exterior).intersects(island) for part in parts)


def test_viewers_open_the_tiffs(whole):
    for kind in ("probability", "prediction"):
        path = whole / f"tumor_001_{kind}.tif"
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (1000, 700)
            assert len(slide.level_dimensions) == 2
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            lesion = np.asarray(slide.read_region((310, 210), 0, (10, 10)))[..., 0]
            assert np.unique(lesion).tolist() == [{"probability": 255, "prediction": 1}[kind]]
        image = pyvips.Image.new_from_file(str(path))
        assert (image.width, image.height, image.bands, image.get("n-pages")) == (1000, 700, 1, 2)
        with tifffile.TiffFile(path) as tiff:
            assert tiff.pages[0].is_tiled
            assert tiff.is_bigtiff


def test_tables_are_what_the_evaluation_reads(toys, slides, tmp_path):
    tumour = np.zeros((300, 1500), bool)
    tumour[80:220, 100:1400] = True  # less is no lesion to the evaluation
    slide_with(tmp_path / "tumor_009.tif", tumour)
    out, truth = tmp_path / "out", tmp_path / "truth"
    command = words(toys / "lesion", tmp_path / "tumor_009.tif", out)
    command.insert(4, str(slides / "normal_001.tif"))
    assert main(command) == 0
    truth.mkdir()
    shutil.copy(out / "tumor_009_prediction.tif", truth / "tumor_009_mask.tif")
    assert (out / "lesions" / "normal_001.csv").read_bytes() == b""
    common = ["--predictions", str(out), "--ground_truth", str(truth)]
    assert camelyon16.main([*common, "--bootstrap", "10"]) == 0
    scores = json.loads((out / "lesions" / "scores" / "camelyon16.json").read_text())
    assert scores["lesions_found"] == scores["lesions"] == 1
    assert scores["false_positives"] == 0
    assert scores["slide_auc"]["auc"] == 1
    assert segmentation.main([*common, "--unlabelled", "normal"]) == 0
    scores = json.loads((out / "scores" / "segmentation.json").read_text())
    assert scores["slides"]["all slides"]["miou"] == 1
    with (out / "slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert rows["normal_001"]["node_label"] == "negative"
    assert rows["tumor_009"]["node_label"] == "micro"
    assert float(rows["tumor_009"]["diameter_mm"]) == pytest.approx(np.hypot(1300, 140) * 0.0005, abs=1e-6)
    assert float(rows["normal_001"]["probability"]) < 0.01 < 0.9 < float(rows["tumor_009"]["probability"])
