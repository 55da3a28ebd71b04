"""Whole slides: what is predicted is what the model says, whatever the grid, the ranks and the interruptions."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import shapely
import tensorflow as tf
import tifffile

from evaluation import camelyon16, segmentation
from evaluation.tables import read_detections
from predict import main
from prediction import grid
from prediction.model import Predictor, find_model
from prediction.outlines import without_islands
from samplers.labels.annotations import read_asap, read_geojson
from samplers.labels.label import LabelMap, open_label
from samplers.slides.slide import Slide
from tests.helpers.launch import ROOT, run_python, start_python, wait_for
from tests.helpers.lesion_slides import make_slide
from tests.helpers.tiny_slides import overwrite_tile, write_levels
from tests.helpers.toy_models import randomise, toy_efficientdet
from tests.helpers.toy_predictors import export, rings, slide_with
from training.checkpoint import save_checkpoint
from utils.cli import UserError
from utils.files import write_atomically
from utils.ranks.world import World

COMMON = ("--img_size", "128", "--batch_size", "3")
FEW = ("--threshold", "0.99")  # noise has the most ragged outlines that there are


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported models by kind."""
    folder = tmp_path_factory.mktemp("toys")
    for kind in ("lesion", "red", "blurred", "sloping", "batch", "three"):
        export(kind, folder / kind)
    return folder


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides in a folder with a space in its name: two with lesions, one without."""
    folder = tmp_path_factory.mktemp("some slides")
    make_slide(folder, "tumor_001", label=None)
    slide_with(folder / "tumor_002.tif", rings())
    make_slide(folder, "normal_001", lesions=(), label=None)
    return folder


def words(model: Path, where: Path, out: Path, *more: str) -> list[str]:
    given = [] if "--img_size" in more else COMMON
    return ["--model_path", str(model), "--slide_path", str(where), "--output", str(out), *given, *more]


def pixels(out: Path, slide: str, kind: str = "probability") -> np.ndarray:
    return tifffile.TiffFile(out / f"{slide}_{kind}.tif").pages[0].asarray()


def record(out: Path, slide: str) -> dict:
    return json.loads((out / "slides" / f"{slide}.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    """Of all files, but for where the slides were and how long they took."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json" and path.parent.name == "slides":
            content = json.dumps({**json.loads(content), "seconds": 0, "path": ""}).encode()
        if path.name == "slides.csv":
            content = b"\n".join(line.rpartition(b",")[0] for line in content.splitlines())
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="session")
def whole(toys: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(words(toys / "lesion", slides, out)) == 0
    return out


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
        assert len(one) == len(other) or theirs.endswith("xml")
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
            assert (
                np.asarray(slide.read_region((310, 210), 0, (10, 10)))[..., 0].min() == 255
                if kind[2] == "o"
                else 1
            )
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


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A log_dir with a toy network's checkpoint, averages (--ema) and export."""
    import models
    from training.options import build_parser, option_values
    from training.trainer import Trainer

    real = models.build_model

    def build(name: str, img_size: None, num_classes: int, **options: object):
        if name == "toy":
            return real(name, img_size, num_classes, **options)
        known = {key: value for key, value in options.items() if key in ("bn_momentum", "batch_norm")}
        return toy_efficientdet(img_size, num_classes, fpn_min_level=3, **known)

    monkeypatch.setattr("models.from_options.build_model", build)
    monkeypatch.setattr(models, "build_model", build)
    options = build_parser().parse_args(["--ema", "0.9", "--img_size", "128", "--seed", "3"])
    options.resolution = None
    trainer = Trainer(options, 2, World())
    randomise(trainer.model)
    for average, variable in zip(trainer.averages, trainer.model.trainable_variables):
        average.assign(0.5 * variable)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps(option_values(options)))
    save_checkpoint(folder / "checkpoints", trainer.checkpoint, {"step": 4, **trainer.state()})
    trainer.export(folder / "model")
    yield folder
    tf.keras.mixed_precision.set_global_policy("float32")


def test_checkpoint_and_export_are_the_same_model_and_another_precision_is_not(trained):
    images = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), dtype=np.uint8)

    def predicted(path: Path, precision: str | None = None) -> np.ndarray:
        return Predictor(find_model(path, precision), precision, 128, False)(images)

    exported = predicted(trained)
    assert find_model(trained, None).path == trained / "model"
    checkpoint = find_model(trained / "checkpoints", None)
    assert checkpoint.path == trained / "checkpoints" / "step_000000004"
    np.testing.assert_allclose(predicted(checkpoint.path), exported, atol=1e-5)
    assert np.ptp(exported) > 1e-3
    assert find_model(trained, "bfloat16").path == checkpoint.path
    low = predicted(trained, "bfloat16")
    assert low.dtype == np.float32
    assert 1e-7 < np.abs(low - exported).max() < 0.2
    with pytest.raises(UserError, match="as it was exported"):
        find_model(trained / "model", "bfloat16")


def test_img_size_and_resolution_are_those_of_the_training(toys, slides, tmp_path):
    model = shutil.copytree(toys / "lesion", tmp_path / "run" / "model")
    (model.parent / "options.json").write_text(json.dumps({"img_size": 96, "resolution": 1.0}))
    command = words(model.parent, slides / "tumor_001.tif", tmp_path / "out", "--img_size", "1")
    assert main([word for word in command if word not in ("--img_size", "1")]) == 0
    assert record(tmp_path / "out", "tumor_001")["settings"]["img_size"] == 96
    assert pixels(tmp_path / "out", "tumor_001").shape == (350, 500)


def test_a_second_run_does_nothing_and_another_model_or_option_is_refused(toys, slides, whole, capsys):
    before = digests(whole)
    assert main(words(toys / "lesion", slides, whole)) == 0
    assert "3 slides, 3 of them are finished already" in capsys.readouterr().out
    assert digests(whole) == before
    assert main(words(toys / "lesion", slides, whole, "--overlap", "0.5")) == 2
    assert "--overlap was 0.25, is 0.5" in capsys.readouterr().err
    assert main(words(toys / "red", slides, whole)) == 2
    assert "--model was" in capsys.readouterr().err
    assert digests(whole) == before


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 7))])
def test_killed_and_started_again_gives_the_same_files(seed, toys, slides, whole, tmp_path):
    command = ["predict.py", *words(toys / "lesion", slides, tmp_path)]
    process = start_python(command)
    wait_for(lambda: list(tmp_path.glob(".work/*")), process)
    time.sleep(random.Random(seed).uniform(0, 1))
    process.kill()
    process.communicate()
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_a_bad_slide_leaves_no_files_and_the_others_are_done(toys, slides, whole, tmp_path, capsys):
    some = shutil.copytree(slides, tmp_path / "some slides")
    overwrite_tile(some / "tumor_002.tif", 70, b"\xff\xd9 broken")
    (some / "tumor_003.tif").write_bytes((slides / "tumor_001.tif").read_bytes()[:200_000])
    out = tmp_path / "out"
    assert main(words(toys / "lesion", some, out)) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: tumor_002" in said
    assert "bad slide, left out: tumor_003" in said
    assert "truncated" in said
    assert "2 slides could not be used, all others are done" in said
    kept = {
        name: digest
        for name, digest in digests(whole).items()
        if "tumor_002" not in name and name != "slides.csv"
    }
    assert {name: digest for name, digest in digests(out).items() if name != "slides.csv"} == kept


def test_what_was_never_scanned_is_glass(toys, slides, tmp_path):
    shutil.copy(slides / "tumor_001.tif", tmp_path / "tumor_001.tif")
    overwrite_tile(tmp_path / "tumor_001.tif", 5 * 16 + 8)  # its place and size are 0
    assert main(words(toys / "red", tmp_path / "tumor_001.tif", tmp_path / "out", *FEW)) == 0
    assert (pixels(tmp_path / "out", "tumor_001")[320:384, 512:576] == 255).all()


@pytest.mark.parametrize(
    "place", ["os.pwrite", "prediction.work.write_overlay", "prediction.store.write_atomically"]
)
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    place, toys, slides, whole, tmp_path, monkeypatch, capsys
):
    def full(target: object, *_: object) -> int:
        if getattr(target, "name", "") == "prediction.json":
            return write_atomically(target, *_)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        assert main(words(toys / "lesion", slides, tmp_path)) == 1
    assert "No space left on device. Make room, and the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "slides").iterdir())
    assert main(words(toys / "lesion", slides, tmp_path)) == 0
    assert digests(tmp_path) == digests(whole)


def test_a_slide_smaller_than_a_patch(toys, tmp_path):
    tumour = np.zeros((180, 150), bool)
    tumour[60:120, 50:110] = True
    slide_with(tmp_path / "small.tif", tumour)
    assert (
        main(
            words(
                toys / "lesion",
                tmp_path / "small.tif",
                tmp_path / "out",
                "--img_size",
                "256",
                "--min_lesion_mm",
                "0.01",
            )
        )
        == 0
    )
    np.testing.assert_array_equal(pixels(tmp_path / "out", "small", "prediction"), tumour)


def test_folder_file_and_pattern(toys, slides, tmp_path):
    (tmp_path / "x_mask.tif").write_bytes(b"no slide")
    command = words(toys / "lesion", slides / "tumor_*1.tif", tmp_path / "out", "--verbose", "--no_cuda")
    command[command.index("--output") : command.index("--output")] = [str(slides / "normal_001.tif")]
    assert main(command) == 0
    assert sorted(path.stem for path in (tmp_path / "out" / "slides").iterdir()) == [
        "normal_001",
        "tumor_001",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model_path", "/nowhere"], "--model_path /nowhere"),
        (["--model_path", "docs"], "holds no model"),
        (["--slide_path", "/nowhere/*.tif"], "no slides are there"),
        (["--overlap", "1"], "--overlap"),
        (["--mixed_precision", "bfloat16"], "as it was exported"),
        (["--min_lesion_mm", "0"], "--min_lesion_mm"),
        (["--output", "README.md"], "is a file"),
    ],
)
def test_wrong_options_end_with_2(options, said, toys, slides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main([*words(toys / "lesion", slides, tmp_path), *options])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_two_slides_of_the_same_name_end_with_2(toys, slides, tmp_path, capsys):
    shutil.copy(slides / "tumor_001.tif", tmp_path)
    command = words(toys / "lesion", slides, tmp_path / "out")
    command.insert(4, str(tmp_path))
    with pytest.raises(SystemExit):
        main(command)
    assert "have the same name" in capsys.readouterr().err


def test_help_names_every_option_and_its_default():
    done = run_python(["predict.py", "--help"])
    assert done.returncode == 0
    for name in ("--tta", "--no-tissue_only", "--resolution", "--min_lesion_mm", "(default: 0.25)"):
        assert name in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("pattern", ["*.tif", "tumor_002.tif"])
def test_two_ranks_write_the_same_files(pattern, toys, slides, whole, tmp_path):
    done = run_python(["predict.py", *words(toys / "lesion", slides / pattern, tmp_path)], ranks=2)
    assert done.returncode == 0, done.stderr
    expected = digests(whole)
    if pattern != "*.tif":
        expected = {name: digest for name, digest in expected.items() if "tumor_002" in name}
    found = digests(tmp_path)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.mpi
def test_two_ranks_leave_a_slide_that_is_bad_for_one_of_them(toys, slides, tmp_path):
    shutil.copy(slides / "tumor_002.tif", tmp_path / "bad.tif")
    overwrite_tile(tmp_path / "bad.tif", 20, b"\xff\xd9 broken")
    done = run_python(
        ["predict.py", *words(toys / "lesion", tmp_path / "bad.tif", tmp_path / "out")], ranks=2
    )
    assert done.returncode == 1
    assert "bad slide, left out: bad" in done.stderr
    assert not list((tmp_path / "out").glob("bad*"))


@pytest.mark.slow
def test_memory_for_a_slide_of_100_000_pixels_stays_below_4_gb(toys, tmp_path):
    from tests.helpers.large_slide import write_sparse

    write_sparse(tmp_path / "large.tif", 100_000)
    command = [
        "-m",
        "tests.helpers.large_slide",
        *words(toys / "lesion", tmp_path / "large.tif", tmp_path / "out", "--img_size", "1024"),
    ]
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "out", "large")["lesions"] > 0
    assert float(done.stdout.split()[-1]) < 4


def test_the_script_passes_options_and_exit_code_on(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "run_predict.sh"), "--model_path", "no such", "--slide_path", ".", "--output", "x"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "--model_path no such: there is no such folder" in done.stderr
