"""Several models: their mean and disagreement on whole slides, and models that do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from predict import main
from prediction.ensemble import Ensemble
from prediction.uncertainty import LOOK_AT, LOOK_FROM, SCALE, entropy_of
from tests.helpers.lesion_slides import make_slide
from tests.helpers.predicting import pixels
from utils.cli import EXIT_USAGE, UserError


def words(models: list[Path], slides: Path, out: Path) -> list[str]:
    options = ["--img_size", "128", "--batch_size", "3", "--no-tissue_only"]
    return ["--model_path", *map(str, models), "--slide_path", str(slides), "--output", str(out), *options]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder, "tumor_001", lesions=((200, 150, 420, 330), (560, 300, 760, 520)), label=None)
    return folder


@pytest.fixture(scope="module")
def predicted(toys: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Predictions of two models apart, and of both."""
    out = tmp_path_factory.mktemp("out")
    kinds = {"lesion": ["lesion"], "sloping": ["sloping"], "both": ["sloping", "lesion"]}
    for name, models in kinds.items():
        assert main(words([toys / kind for kind in models], slide, out / name)) == 0
    return {name: out / name for name in kinds}


def test_the_mean_of_two_models_and_their_disagreement(predicted):
    one, other, mean = (
        pixels(predicted[k], "tumor_001").astype(float) for k in ("lesion", "sloping", "both")
    )
    assert np.abs(mean - (one + other) / 2).max() <= 1
    deviation = pixels(predicted["both"], "tumor_001", "disagreement")
    # Blended over patches, which agree on lesions but not on the slope: never more than that of the blended values.
    inside = np.abs(one - other) / 2 / 255 * SCALE
    assert (deviation >= inside - 3).all()
    assert np.abs(deviation - inside).mean() < 25
    entropy = pixels(predicted["both"], "tumor_001", "entropy")
    expected = entropy_of((mean / 255)[None].astype(np.float32)) * 255
    assert np.abs(entropy - expected).max() <= 6  # of a probability that is rounded to 1 / 255
    assert not list(predicted["lesion"].glob("*_disagreement.tif"))


def test_lesions_and_regions_say_how_far_the_models_disagree(predicted):
    folder = predicted["both"]
    lesions = json.loads((folder / "tumor_001.geojson").read_text())["features"]
    assert lesions
    deviation = pixels(folder, "tumor_001", "disagreement") / SCALE
    for lesion in lesions:
        assert 0 <= lesion["properties"]["measurements"]["disagreement"] <= 0.5
    regions = json.loads((folder / "tumor_001_look_here.geojson").read_text())["features"]
    assert 1 <= len(regions) <= LOOK_AT
    scores = [region["properties"]["measurements"]["score mm2"] for region in regions]
    assert scores == sorted(scores, reverse=True)
    assert [region["properties"]["name"] for region in regions] == [
        f"look here {n + 1}" for n in range(len(regions))
    ]
    covered = shapely.union_all([shapely.geometry.shape(region["geometry"]) for region in regions])
    rows, columns = np.nonzero(deviation > 3 * LOOK_FROM)
    assert shapely.contains_xy(covered, columns + 0.5, rows + 0.5).mean() > 0.95
    assert covered.bounds[2] <= 1000
    single = json.loads((predicted["lesion"] / "tumor_001.geojson").read_text())["features"]
    assert "disagreement" not in single[0]["properties"]["measurements"]


class Constant:
    deviates = False

    def __init__(self, *values: float) -> None:
        self.values, self.planes = np.array(values, np.float32), len(values)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.values[None, :, None, None], (len(images), self.planes, 4, 4))


def test_mean_and_standard_deviation_are_those_of_numpy():
    values = np.array([0.1, 0.9, 0.4, 0.45])
    found = Ensemble([Constant(value) for value in values])(np.zeros((2, 4, 4, 3), np.uint8))
    assert found.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found[1, :, 3, 3], [values.mean(), values.std()], rtol=1e-6)
    several = Ensemble([Constant(0.2, 0.5, 0.3), Constant(0.6, 0.3, 0.1)])(np.zeros((1, 4, 4, 3), np.uint8))
    np.testing.assert_allclose(several[0, :, 0, 0], [0.4, 0.4, 0.2, 0.2], rtol=1e-6)
    with pytest.raises(UserError, match="different numbers of classes: 2, 3"):
        Ensemble([Constant(0.5), Constant(0.2, 0.5, 0.3)])


def test_entropy_is_a_part_of_its_maximum():
    two = entropy_of(np.array([[[0.0, 0.5, 1.0, 0.11]]], np.float32))
    np.testing.assert_allclose(two[0], [0, 1, 0, 0.49992], atol=1e-4)
    three = np.full((3, 1, 1), 1 / 3, np.float32)
    assert entropy_of(three)[0, 0] == pytest.approx(1)


def test_models_that_agree_leave_nothing_to_look_at(toys, slide, tmp_path):
    import shutil

    shutil.copytree(toys / "lesion", tmp_path / "models/fold_1")
    shutil.copytree(toys / "lesion", tmp_path / "models/fold_2")
    assert main(words([tmp_path / "models/fold_*"], slide, tmp_path / "out")) == 0
    assert not pixels(tmp_path / "out", "tumor_001", "disagreement").any()
    assert json.loads((tmp_path / "out/tumor_001_look_here.geojson").read_text())["features"] == []


@pytest.mark.parametrize(
    ("kinds", "said"),
    [(["lesion", "three"], "different numbers of classes"), (["lesion", "lesion"], "is there twice")],
)
def test_models_that_do_not_go_together_are_refused(toys, slide, tmp_path, capsys, kinds, said):
    command = words([toys / kind for kind in kinds], slide, tmp_path / "out")
    try:
        code = main(command)
    except SystemExit as ended:
        code = ended.code
    assert code == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_models_of_other_patches_are_refused_unless_it_is_said_which(toys, slide, tmp_path, capsys):
    for number, size in ((1, 128), (2, 256)):
        folder = tmp_path / f"fold_{number}"
        folder.mkdir()
        (folder / "model").symlink_to(toys / ("red" if number == 1 else "lesion"))
        (folder / "options.json").write_text(json.dumps({"img_size": size}))
    command = [
        "--model_path",
        str(tmp_path / "fold_*"),
        "--slide_path",
        str(slide),
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit):
        main(command)
    assert "with --img_size 128" in capsys.readouterr().err
