"""train.py as users start it: a whole run on small slides, what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.launch import run_python
from training.resume import read_metrics

SMALL = ["--data_sampler", "surf", "--img_size", "128", "--batch_size", "2", "--validation_patches", "6"]


def paths(demo: Path, label: str = "masks") -> list[str | Path]:
    return ["--slide_path", demo / "slides", "--label_path", demo / label]


@pytest.fixture(scope="module")
def finished(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on 2 ranks, in a folder with a space: its log_dir and what it printed."""
    log_dir = tmp_path_factory.mktemp("a run") / "log"
    words = (
        "--num_steps 24 --log_every 8 --validate_every 12 --val_split 0.34 --learning_rate 2e-3 --lr_scaling sqrt "
        "--warmup_steps 12 --lr_schedule polynomial --freeze_bn 0.5"
    )
    done = run_python(["train.py", *paths(demo), *SMALL, *words.split(), "--log_dir", log_dir], ranks=2)
    assert done.returncode == 0, done.stderr
    return log_dir, done.stdout


@pytest.mark.mpi
def test_last_line_is_the_validation_miou(finished):
    assert re.fullmatch(r"validation mIoU 0\.\d{4} \(step 24\)", finished[1].strip().splitlines()[-1])


@pytest.mark.mpi
def test_metrics_have_every_logged_and_validated_step(finished):
    records = read_metrics(finished[0])
    assert [r["step"] for r in records if r["split"] == "train"] == [8, 16, 24]
    assert [r["step"] for r in records if r["split"] == "val"] == [12, 24]
    for record in records:
        assert set(record) == {
            "step", "split", "loss", "miou", "iou", "dice", "auc", "seconds", "images_per_second", "sampler_wait",
            "bad_slides", "learning_rate", "precision", "recall", "calibration_error",
            *(["slides"] * (record["split"] == "val")),
        }  # fmt: skip
        assert 0 <= record["miou"] <= 1
        assert len(record["iou"]) == 2


@pytest.mark.mpi
def test_learning_rate_is_scaled_warmed_up_and_scheduled_as_asked(finished):
    rates = [r["learning_rate"] for r in read_metrics(finished[0]) if r["split"] == "train"]
    peak = 2e-3 * 2**0.5
    # Of the last update before each log, which began at steps 4, 12 (batch norm is frozen, warm-up again) and 20.
    assert rates == pytest.approx([peak * 5 / 13, peak / 13, peak * (1 / 3) ** 0.9 * 9 / 13])


@pytest.mark.mpi
def test_what_a_run_leaves_behind(finished):
    log_dir = finished[0]
    assert json.loads((log_dir / "options.json").read_text())["img_size"] == 128
    splits = json.loads((log_dir / "splits.json").read_text())
    assert {len(splits["train"]), len(splits["val"])} == {2, 1}
    assert sorted(p.name for p in (log_dir / "checkpoints").iterdir()) == ["step_000000012", "step_000000024"]
    # Of 6 updates, and one for batch norm's averages when they were frozen.
    state = json.loads((log_dir / "checkpoints" / "step_000000024" / "state.json").read_text())
    assert [rank["next_batch"] for rank in state["ranks"]] == [7, 7]
    assert len(list((log_dir / "samples").glob("*.png"))) == 2
    assert (log_dir / "pictures" / "validation_000000024.png").stat().st_size > 10_000
    assert list((log_dir / "tensorboard" / "val").glob("events*"))


@pytest.mark.mpi
def test_exported_model_stands_alone(finished, tmp_path):
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "images = np.random.default_rng(0).integers(0, 255, (1, 256, 128, 3)).astype(np.uint8)\n"
        "p = tf.saved_model.load(sys.argv[1])(images)\n"
        "q = tf.keras.models.load_model(sys.argv[1], compile=False)(images)\n"
        "np.savez(sys.argv[2], p=p, q=q)"
    )
    out = tmp_path / "out.npz"
    done = run_python(["-c", code, finished[0] / "model", out], cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    arrays = np.load(out)
    assert arrays["p"].shape == (1, 256, 128, 2)
    np.testing.assert_allclose(arrays["p"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(arrays["p"], arrays["q"], atol=1e-6)


def refused(words: list[str | Path], said: str, ranks: int = 1) -> None:
    done = run_python(["train.py", *words], ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


@pytest.mark.mpi
def test_unreadable_slide_ends_all_ranks_with_2(demo, shared_data, tmp_path):
    slides = tmp_path / "slides with space"
    slides.mkdir()
    for slide in (demo / "slides").iterdir():
        (slides / slide.name).symlink_to(slide)
    (slides / "tumor_001.tif").unlink()
    (slides / "tumor_001.tif").symlink_to(shared_data / "real" / "broken.svs")
    words = ["--slide_path", slides, "--label_path", demo / "masks", *SMALL]
    refused(words, "tumor_001.tif", ranks=2)


def test_label_without_slide_is_refused(demo, tmp_path):
    (tmp_path / "slides").mkdir()
    for slide in sorted((demo / "slides").iterdir())[1:]:
        (tmp_path / "slides" / slide.name).symlink_to(slide)
    refused(
        ["--slide_path", tmp_path / "slides", "--label_path", demo / "masks", *SMALL], "tumor_001_mask.tif"
    )


def test_no_pairs_is_refused(tmp_path):
    refused(["--slide_path", tmp_path, "--label_path", tmp_path, *SMALL], str(tmp_path))


def test_a_loss_that_is_no_number_ends_the_run_with_its_batch(demo, tmp_path):
    words = [*paths(demo), *SMALL, "--fpn_min_level", "3", "--num_steps", "24", "--val_split", "0.34"]
    done = run_python(
        ["tests/helpers/toy_train.py", *words, "--learning_rate", "1e30", "--log_dir", tmp_path / "log"]
    )
    assert done.returncode == 1
    assert "[rank 0] failed: the loss is nan at step" in done.stderr
    assert "Traceback" not in done.stderr
    (batch,) = (tmp_path / "log").glob("bad_batch_step_*_rank_0.npz")
    assert np.load(batch)["images"].shape == (2, 128, 128, 3)


def test_slide_smaller_than_the_patch_is_refused(demo):
    refused([*paths(demo), "--data_sampler", "surf", "--img_size", "2048"], "1536")


@pytest.mark.mpi
def test_a_validation_slide_that_one_rank_cannot_use_is_named_and_ends_all_ranks(demo, tmp_path):
    """Only rank 0 prints errors: an error of another rank alone would end the job without a word."""
    code = (
        "import sys, samplers.validation, train\n"
        "from samplers.slides.errors import DataError\n"
        "from utils.ranks.launcher import launcher_rank\n"
        "real = samplers.validation.overview\n"
        "def overview(*words):\n"
        "    if launcher_rank()[0] == 1:\n"
        "        raise DataError('is torn')\n"
        "    return real(*words)\n"
        "samplers.validation.overview = overview\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    words = [
        *paths(demo),
        *SMALL,
        "--fpn_min_level",
        "3",
        "--val_split",
        "0.67",  # each rank looks at one of two slides
        "--max_bad_slides",
        "0",
        "--log_dir",
        tmp_path / "log",
    ]
    done = run_python(["-c", code, *words], ranks=2)
    assert done.returncode == 2, done.stderr
    assert "train.py: error: 1 of 2 validation slides could not be read" in done.stderr
    assert re.search(r"validation slide tumor_00\d: is torn", done.stderr)
