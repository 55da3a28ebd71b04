"""Toy models, slides and a whole prediction of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tensorflow as tf

from predict import main
from tests.helpers.lesion_slides import make_slide
from tests.helpers.predicting import words
from tests.helpers.toy_models import randomise, toy_efficientdet
from tests.helpers.toy_predictors import export, rings, slide_with
from training.checkpoint import save_checkpoint
from utils.ranks.world import World


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


@pytest.fixture(scope="session")
def whole(toys: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(words(toys / "lesion", slides, out)) == 0
    return out


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A log_dir with a toy network's checkpoint and export."""
    import models
    from training.options import build_parser, option_values
    from training.trainer import Trainer, export_model

    real = models.build_model

    def build(name: str, img_size: None, num_classes: int, **options: object):
        if name == "toy":
            return real(name, img_size, num_classes, **options)
        known = {key: value for key, value in options.items() if key in ("bn_momentum", "batch_norm")}
        return toy_efficientdet(img_size, num_classes, fpn_min_level=3, **known)

    monkeypatch.setattr("models.from_options.build_model", build)
    monkeypatch.setattr(models, "build_model", build)
    options = build_parser().parse_args(["--img_size", "128", "--seed", "3"])
    options.resolution = None
    trainer = Trainer(options, 2, World())
    randomise(trainer.model)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps(option_values(options)))
    save_checkpoint(folder / "checkpoints", trainer.checkpoint, {"step": 4, **trainer.description()})
    export_model(options, trainer.model, folder / "model", [["other"], ["Krebs", "_0"]])
    yield folder
    tf.keras.mixed_precision.set_global_policy("float32")
