"""The probability of a pixel is what the model says, whatever the grid, the spacing and the batches."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from evaluation.tables import read_detections
from predict import main
from prediction import grid
from samplers.labels.label import LabelMap, open_label
from samplers.slides.slide import Slide
from tests.helpers.predicting import COMMON, FEW, pixels, record, words


@pytest.mark.parametrize(
    ("extent", "size", "overlap"), [(1000, 128, 0.25), (128, 128, 0.5), (90, 128, 0), (129, 128, 0.9)]
)
def test_patches_cover_the_slide_and_their_weights_add_up_to_one(extent, size, overlap):
    first = grid.starts(extent, size, overlap)
    assert first[0] == 0
    assert first[-1] == max(0, extent - size)
    assert (np.diff(first) <= round(size * (1 - overlap))).all()
    total = np.zeros(first[-1] + size)
    for start, weights in zip(first, grid.blend_weights(first, size)):
        total[start : start + size] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_bands_are_all_rows_once_and_have_all_their_patches():
    tissue = np.zeros((20, 20), bool)
    tissue[5:18, 3:9] = True
    whole = grid.Grid(grid.Frame(1000, 1000, 1.0, 0.5), 128, 0.25, tissue, (50.0, 50.0))
    for count in (1, 2, 3, 7, 40):
        bands = whole.bands(count)
        assert [y for band in bands for y in range(*band)] == list(range(1000))
        for band in bands:
            first, stop = whole.rows_of(band)
            inside = [
                i for i, y in enumerate(whole.ys) if y < band[1] and y + 128 > band[0] and band[0] < band[1]
            ]
            assert list(range(first, stop)) == inside
    sizes = [whole.chosen[slice(*whole.rows_of(band))].sum() for band in whole.bands(2)]
    assert max(sizes) < 0.75 * whole.chosen.sum()


def test_a_pixel_has_the_model_s_probability_whatever_the_grid(toys, slides, tmp_path):
    with Slide(slides / "tumor_001.tif") as slide:
        red = slide.read(0, 0, slide.width, slide.height)[..., 0]
    maps = []
    grids = (COMMON, ("--img_size", "192", "--overlap", "0.5"), ("--img_size", "96", "--overlap", "0"))
    for number, options in enumerate(grids):
        out = tmp_path / str(number)
        assert main(words(toys / "red", slides / "tumor_001.tif", out, *options, *FEW)) == 0
        maps.append(pixels(out, "tumor_001").astype(int))
    inside = maps[0] > 0  # the grown tissue: the same on all grids
    assert 0.5 < inside.mean() < 0.97
    for found in maps:
        assert np.abs(found - red)[inside].max() <= 1
        assert (found[~inside] == 0).all()
    assert len({record(tmp_path / str(i), "tumor_001")["patches"] for i in range(3)}) == 3


def test_no_seams(toys, slides, tmp_path):
    def predicted(name: str, *options: str) -> np.ndarray:
        assert main(words(toys / "blurred", slides / "tumor_001.tif", tmp_path / name, *options, *FEW)) == 0
        return pixels(tmp_path / name, "tumor_001").astype(int)[100:600, 200:800]

    at_once = predicted("at once", "--img_size", "1024")  # one patch, glass beyond the slide's end
    blended = predicted("blended", "--img_size", "128", "--overlap", "0.5")
    butted = predicted("butted", "--img_size", "128", "--overlap", "0")
    assert np.abs(blended - at_once).max() <= 4
    assert np.abs(butted - at_once).max() > 40


def test_resolution_is_that_of_the_result_and_it_lies_at_the_slide_s_corner(toys, slides, tmp_path):
    for resolution, size in (("1.0", (350, 500)), ("0.7", (500, 714))):
        out = tmp_path / resolution
        assert main(words(toys / "lesion", slides / "tumor_001.tif", out, "--resolution", resolution)) == 0
        scale = float(resolution) / 0.5
        found = pixels(out, "tumor_001")
        assert found.shape == size
        with Slide(out / "tumor_001_prediction.tif", kind="label") as mask:
            assert mask.spacing == pytest.approx(float(resolution), rel=1e-5)
        rows, columns = np.nonzero(found[:, : int(500 / scale)] > 250)
        edges = np.array([columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]) * scale
        np.testing.assert_allclose(edges, (300, 420, 200, 330), atol=2 * scale)
        (hit,) = read_detections(out / "lesions" / "tumor_001.csv")
        assert 300 < hit.x < 420
        assert 200 < hit.y < 330
        # And it is read back as a label of the slide.
        with (
            Slide(slides / "tumor_001.tif") as slide,
            closing(open_label(out / "tumor_001_prediction.tif", slide, LabelMap())) as label,
        ):
            assert label.read_at(310, 210, 100, 110, 1.0).all()
            assert not label.read_at(250, 150, 40, 40, 1.0).any()


def test_without_tissue_only_glass_is_predicted_as_well(toys, slides, tmp_path):
    assert main(words(toys / "red", slides / "normal_001.tif", tmp_path, "--no-tissue_only", *FEW)) == 0
    assert pixels(tmp_path, "normal_001")[0, 0] == 245


def test_batch_size_and_img_size_reach_the_model(toys, slides, tmp_path):
    found = []
    for number in ("1", "4"):
        out = tmp_path / number
        more = ("--img_size", "128", "--batch_size", number, "--no-tissue_only")
        assert main(words(toys / "batch", slides / "normal_001.tif", out, *more)) == 0
        found.append(pixels(out, "normal_001")[:96, :96].mean() / 25.5)
    np.testing.assert_allclose(found, (1, 4), atol=0.02)


def test_tta_is_the_mean_over_flips_and_turns(toys, slides, tmp_path):
    more = ("--img_size", "1024", "--no-tissue_only")
    for out, tta in (("plain", ()), ("tta", ("--tta",))):
        assert main(words(toys / "sloping", slides / "normal_001.tif", tmp_path / out, *more, *tta)) == 0
    assert np.ptp(pixels(tmp_path / "plain", "normal_001").astype(int)[0]) > 200
    assert set(np.unique(pixels(tmp_path / "tta", "normal_001"))) <= {127, 128}
