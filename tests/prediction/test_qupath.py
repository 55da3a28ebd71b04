"""The script for QuPath: what it takes from a model is what an exported model has, and its tiles cover a region.

QuPath itself is not to be had here. Where there is Groovy, the script runs with stand-ins for QuPath's classes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.toy_models import randomise, toy_efficientdet
from training.card import make_card

ROOT = Path(__file__).parents[2]
OPENED = (
    "--add-opens=java.base/java.lang=ALL-UNNAMED --add-opens=java.base/java.util=ALL-UNNAMED"  # Groovy 2.4
)
SCRIPT = ROOT / "prediction" / "qupath" / "predict_region.groovy"
STAND_IN = Path(__file__).parent / "qupath_stand_in.groovy"


def test_the_card_has_what_the_script_reads(tmp_path):
    options = {"model": "effdetd0", "img_size": 512, "resolution": 0.5, "dataset": None, "folds": None, "fold": None,
               "seed": 0}  # fmt: skip
    for name, content in (("options", options), ("environment", {}), ("labels", {"train": {}, "val": {}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text("")
    card = make_card(tmp_path, [["other"], ["Tumor", "_0"]])
    keys = set(re.findall(r"\bcard((?:\.(?!collect|json)\w+)+)", SCRIPT.read_text()))
    assert {".input.tile", ".input.overlap", ".input.spacing_um", ".classes"} == keys
    for key in keys:
        found = card
        for part in key[1:].split("."):
            found = found[part]
        assert found is not None


def test_an_exported_model_takes_bytes_and_gives_probabilities(tmp_path):
    from models import serving_model

    serving_model("effdetd0", randomise(toy_efficientdet(None))).save(
        tmp_path / "model", include_optimizer=False
    )
    signature = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    (images,) = signature.structured_input_signature[1].values()
    (probabilities,) = signature.structured_outputs.values()
    assert (images.dtype, images.shape[3]) == (tf.uint8, 3)
    assert images.shape[:3].as_list() == [None, None, None]
    assert (probabilities.dtype, probabilities.shape[3]) == (tf.float32, 2)


@pytest.mark.skipif(shutil.which("groovy") is None, reason="needs groovy (apt-get install groovy)")
@pytest.mark.parametrize(
    ("size", "spacing"),
    [((100, 150), 0.5), ((40, 230), 0.5), ((33, 20), 0.5), ((200, 300), 0.25)],
    ids=["several tiles", "one row", "smaller than a tile", "half the resolution"],
)
def test_tiles_cover_the_region_and_each_pixel_is_where_it_belongs(size, spacing, tmp_path):
    step = round(0.5 / spacing)
    coarse = (np.random.default_rng(0).random((size[0] // step, size[1] // step)) > 0.5).astype(np.uint8)
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 2] = 200 * np.kron(coarse, np.ones((step, step), np.uint8))  # BGR: red
    picture[..., 0] = 255 - picture[..., 2]
    cv2.imwrite(str(tmp_path / "slide.png"), picture)
    card = {"input": {"tile": 64, "overlap": 0.25, "spacing_um": 0.5}, "classes": [["other"], ["Tumor"]]}
    (tmp_path / "card.json").write_text(json.dumps(card))
    command = ["groovy", STAND_IN, SCRIPT, tmp_path, tmp_path / "slide.png", spacing, tmp_path / "mask.pgm"]
    java = Path(shutil.which("java") or "").resolve().parents[1]  # Debian's Groovy looks for another one
    environment = {**os.environ, "JAVA_HOME": str(java), "JAVA_OPTS": OPENED}
    words = [*map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Tumor: 1 annotations" in done.stdout
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "mask.pgm"), cv2.IMREAD_UNCHANGED), coarse * 255)
