"""Predictions say of which slide and at which downsample they are, and QuPath's outlines lie where QuPath has them."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import cv2
import numpy as np
import pytest

from evaluation import camelyon16, segmentation
from predict import main
from samplers.labels.annotations import read_asap, read_geojson
from samplers.labels.label import LabelMap, open_label
from samplers.slides.frame import described_frame
from samplers.slides.slide import Slide
from tests.helpers.predicting import pixels, words
from tests.helpers.scn_slide import write_scn

CORNER, SIZE = (384, 256), (1664, 1536)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """A slide of Leica with `openslide.bounds-*`: tissue, and a lesion at (864, 756)."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 110, (1152, 1152, 3)) + np.array([120, 40, 110])
    tissue = cv2.ellipse(np.zeros((1152, 1152), np.uint8), (576, 576), (220, 220), 0, 0, 360, 1, -1) > 0
    image[~tissue] = 245  # up to where the toy would take the white of what is not scanned for tumour
    image[500:600, 480:600, 0] = 255
    path = tmp_path_factory.mktemp("scn") / "tumor_007.scn"
    return write_scn(path, image.astype(np.uint8), CORNER, SIZE)


@pytest.mark.parametrize("resolution", ["0.25", "0.26", "0.5"])
def test_what_predict_writes_is_read_in_the_frame_of_the_slide(toys, cropped, tmp_path, resolution):
    out = tmp_path / "out"
    assert (
        main(words(toys / "lesion", cropped, out, "--resolution", resolution, "--min_lesion_mm", "0.01")) == 0
    )
    for kind in ("prediction", "probability"):
        frame, downsample = described_frame(out / f"tumor_007_{kind}.tif")
        assert (frame.width, frame.height, frame.origin, frame.spacing) == (*SIZE, CORNER, 0.25)
        assert downsample == float(resolution) / 0.25
    (lesion,), _ = read_geojson(out / "tumor_007.geojson")
    (same,), _ = read_asap(out / "tumor_007.xml")
    assert same.geometry.bounds == pytest.approx((864, 756, 984, 856), abs=1.5)
    moved = np.subtract(same.geometry.bounds, CORNER * 2)
    assert lesion.geometry.bounds == pytest.approx(moved, abs=1e-6)
    found = pixels(out, "tumor_007", "prediction") > 0
    with Slide(cropped) as slide:
        for name in ("tumor_007.geojson", "tumor_007.xml", "tumor_007_prediction.tif"):
            with closing(open_label(out / name, slide, LabelMap())) as label:
                height, width = found.shape
                np.testing.assert_array_equal(
                    label.read_at(0, 0, width, height, downsample), found, err_msg=name
                )
    # The evaluation needs no slides: truth and detections are outlines of QuPath and of ASAP.
    for suffix in (".geojson", ".xml"):
        truth = tmp_path / f"truth{suffix}"
        truth.mkdir()
        shutil.copy(out / f"tumor_007{suffix}", truth)
        common = [
            "--predictions",
            str(out),
            "--ground_truth",
            str(truth),
            "--output",
            str(tmp_path / "scores"),
        ]
        assert segmentation.main(common) == 0
        scores = json.loads((tmp_path / "scores/segmentation.json").read_text())
        assert scores["slides"]["tumor_007"]["dice"] == [1, 1]
        assert camelyon16.main([*common, "--bootstrap", "0"]) == 2  # it is too small to be a target


def test_outlines_of_ignored_groups_give_no_names(toys, slides, tmp_path):
    model = shutil.copytree(toys / "lesion", tmp_path / "run" / "model")
    options = {"label_map": ["blurred:ignore", "None:1", "tumour:1", "255:ignore"], "img_size": 128}
    (tmp_path / "run" / "options.json").write_text(json.dumps({**options, "resolution": None}))
    assert main(words(model, slides / "tumor_001.tif", tmp_path / "out")) == 0
    assert {area.group for area in read_geojson(tmp_path / "out/tumor_001.geojson")[0]} == {"tumour"}
    assert {area.group for area in read_asap(tmp_path / "out/tumor_001.xml")[0]} == {"tumour"}
