"""Which model is used, and with which of its options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from predict import main
from prediction.model import Predictor, find_model
from tests.helpers.predicting import pixels, record, words
from utils.cli import UserError


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


def test_a_patch_is_predicted_alike_in_a_batch_of_any_size(trained):
    predictor = Predictor(find_model(trained / "checkpoints", None), None, 128, False)
    images = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    one_by_one = np.concatenate([predictor(image[None]) for image in images])
    assert np.ptp(one_by_one) > 1e-3
    np.testing.assert_allclose(
        predictor(images), one_by_one, rtol=0, atol=1e-5
    )  # 1 / 255 is a step of the result


def test_img_size_and_resolution_are_those_of_the_training(toys, slides, tmp_path):
    model = shutil.copytree(toys / "lesion", tmp_path / "run" / "model")
    (model.parent / "options.json").write_text(json.dumps({"img_size": 96, "resolution": 1.0}))
    command = words(model.parent, slides / "tumor_001.tif", tmp_path / "out", "--img_size", "1")
    assert main([word for word in command if word not in ("--img_size", "1")]) == 0
    assert record(tmp_path / "out", "tumor_001")["settings"]["img_size"] == 96
    assert pixels(tmp_path / "out", "tumor_001").shape == (350, 500)


def test_the_names_of_the_classes_stay_with_the_exported_model(trained, tmp_path):
    alone = tmp_path / "sent" / "model"  # without the folder of its run
    shutil.copytree(trained / "model", alone)
    source = find_model(alone, None)
    assert source.class_names(2) == [["other"], ["Krebs", "_0"]]
    with pytest.raises(UserError, match="names 2 classes, the model has 3"):
        source.class_names(3)
    (alone / "classes.json").write_text("[1]")
    with pytest.raises(UserError, match=r"classes\.json cannot be read"):
        source.class_names(2)
    (alone / "classes.json").unlink()  # of an earlier version
    assert source.class_names(3) == [["other"], ["Tumor"], ["class_2"]]
    assert find_model(trained / "checkpoints", None).class_names(2) == [["other"], ["Tumor"]]
