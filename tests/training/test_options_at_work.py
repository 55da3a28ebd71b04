"""Options of a whole run with a toy model: what each leaves behind."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import models.from_options
from models import normalise
from samplers import Batch, PatchInfo
from tests.helpers.launch import run_python
from tests.helpers.rank_weights import build, patches
from training.class_weights import class_weights
from training.metrics import mean_iou, patch_confusions
from training.mining import mined
from training.options import build_parser
from training.resume import read_metrics
from training.trainer import Trainer, export_model
from training.validate import validate
from utils.cli import EXIT_STOPPED
from utils.ranks.world import World


def run(demo: Path, log_dir: Path, *more: str) -> list[dict]:
    words = (
        "--data_sampler surf --img_size 128 --batch_size 2 --val_split 0.34 --validation_patches 6 "
        "--fpn_min_level 3"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    done = run_python(["tests/helpers/toy_train.py", *folders, *words.split(), *more])
    folder = log_dir / "debug" if "--debug" in more else log_dir
    (folder / "stdout").write_text(done.stdout)
    assert done.returncode in (0, EXIT_STOPPED), done.stderr
    (folder / "code").write_text(str(done.returncode))
    return read_metrics(folder)


@pytest.fixture(scope="module")
def debugged(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A run of --debug with much else: log_dir and metrics."""
    log_dir = tmp_path_factory.mktemp("debug") / "log"
    more = (
        "--debug --num_steps 5000 --log_every 40 --validate_every 50 --histograms --profile 20:24 "
        "--hard_mining --hard_mining_threshold 0.3 --hard_mining_tries 1 --checkpoint_every 20 --keep_checkpoints 3 "
        "--freeze_bn 0.3"
    )
    return log_dir / "debug", run(demo, log_dir, *more.split())


def test_debug_is_a_whole_run_of_100_images_and_says_what_the_real_one_takes(debugged):
    log_dir, rows = debugged
    assert [(row["split"], row["step"]) for row in rows] == [
        ("train", 40), ("val", 50), ("train", 80), ("train", 100), ("val", 100)
    ]  # fmt: skip
    lines = (log_dir / "stdout").read_text().splitlines()
    assert "the same without --debug, on 1 rank like this:" in lines
    assert "  patches  5,000 of 128² for training (= steps), 6 per validation" in lines
    assert "  steps    2,500 updates of 2 patches, 100 validations" in lines
    for name in ("slides", "time", "memory", "read", "network", "disk"):
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert lines[-1].startswith("validation mIoU")
    assert (log_dir / "model" / "saved_model.pb").exists()


def test_hard_mining_logs_what_it_rejects(debugged):
    assert all(0 < row["rejected"] < 1 for row in debugged[1] if row["split"] == "train")


def test_histograms_profile_and_hparams_are_there_for_tensorboard(debugged):
    folder = debugged[0] / "tensorboard"
    assert list(folder.glob("train/plugins/profile/*/*.xplane.pb"))
    tags = set()
    for path in folder.glob("val/events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert any("kernel" in tag for tag in tags)
    assert any("hparams" in tag for tag in tags)


def test_checkpoints_are_written_and_kept_as_asked(debugged):
    steps = sorted(int(path.name[5:]) for path in (debugged[0] / "checkpoints").iterdir())
    assert steps[-3:] == [60, 80, 100]
    assert set(steps[:-3]) <= {50}  # the best


def test_the_last_part_of_the_steps_keeps_the_averages_of_batch_norm(debugged):
    averages = []
    for step in (60, 80, 100):  # frozen from 70 on
        reader = tf.train.load_checkpoint(
            str(next((debugged[0] / "checkpoints").glob(f"*{step}/*.index")))[:-6]
        )
        names = [name for name in reader.get_variable_to_shape_map() if "moving_" in name]
        averages.append(np.concatenate([reader.get_tensor(name).ravel() for name in sorted(names)]))
    assert np.abs(averages[0] - averages[1]).max() > 0
    np.testing.assert_array_equal(averages[1], averages[2])


def test_the_report_is_one_page_with_all_in_it(debugged):
    text = (debugged[0] / "report.html").read_text()
    assert text.count('src="data:image/') == text.count("<img ") >= 16
    assert "http" not in text
    for words in (
        "Worst validation",
        "Reliability",
        "--hard_mining_threshold",
        "tumor_00",
        "viewport",
        "sources",
    ):
        assert words in text


def test_early_stopping_ends_the_run_with_a_model_and_does_not_go_on(demo, tmp_path):
    more = ["--num_steps", "4000", "--validate_every", "20", "--early_stopping", "1", "--freeze_bn", "0"]
    rows = run(demo, tmp_path / "log", *more)
    scores = [row["miou"] for row in rows if row["split"] == "val"]
    assert scores[-1] <= max(scores[:-1])
    assert scores[:-1] == sorted(set(scores[:-1]))
    assert rows[-1]["step"] < 4000
    assert (tmp_path / "log" / "model").exists()
    assert run(demo, tmp_path / "log", *more) == rows


def test_time_limit_stops_with_a_checkpoint(demo, tmp_path):
    # An update is of two batches of two, and none is cut in two by a stop.
    more = ["--num_steps", "4000", "--time_limit", "0:00", "--accumulate_steps", "2"]
    assert run(demo, tmp_path / "log", *more) == []
    assert (tmp_path / "log" / "code").read_text() == str(EXIT_STOPPED)
    assert [path.name for path in (tmp_path / "log" / "checkpoints").iterdir()] == ["step_000000004"]


# --- a Trainer alone ---------------------------------------------------------------------------------------


@pytest.fixture
def trainer_of(monkeypatch: pytest.MonkeyPatch):
    def make(*words: str) -> Trainer:
        monkeypatch.setattr(models.from_options, "build_model", build)
        options = build_parser().parse_args(words)
        trainer = Trainer(options, 2, World(), class_weights(options, 2, [], None, World()))
        trainer.synchronise()
        return trainer

    return make


def weights(trainer: Trainer) -> list[np.ndarray]:
    return [v.numpy() for v in trainer.model.trainable_variables]


def test_the_exported_model_gives_the_probabilities_of_the_network(trainer_of, tmp_path):
    trainer = trainer_of()
    trainer.train_step(*patches(0), 1e-2, 0)
    images = patches(0)[0]
    expected = tf.nn.softmax(trainer.model(normalise("effdetd0", images))).numpy()
    export_model(build_parser().parse_args([]), trainer.model, tmp_path / "model", [["other"], ["Tumor"]])
    exported = tf.saved_model.load(tmp_path / "model")(images).numpy()
    np.testing.assert_allclose(exported, expected, atol=1e-5)


def test_a_model_trained_in_bfloat16_is_exported_in_float32(trainer_of, tmp_path):
    """Not every CPU that predicts has bfloat16."""
    trainer = trainer_of("--mixed_precision", "bfloat16")
    trainer.train_step(*patches(0), 1e-2, 0)
    images, options = patches(0)[0], build_parser().parse_args(["--mixed_precision", "bfloat16"])
    expected = tf.nn.softmax(trainer.model(normalise("effdetd0", images))).numpy()
    export_model(options, trainer.model, tmp_path / "model", [["other"], ["Tumor"]])
    assert tf.keras.mixed_precision.global_policy().name == "mixed_bfloat16"  # as it was
    saved_model = SavedModel.FromString((tmp_path / "model" / "saved_model.pb").read_bytes())
    graph = str(saved_model.meta_graphs[0].graph_def)
    assert "DT_FLOAT" in graph
    assert "DT_BFLOAT16" not in graph
    saved = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(saved(images).numpy(), expected, atol=0.05)


def test_the_optimizer_is_the_one_asked_for_with_its_clipping(trainer_of):
    trainer = trainer_of("--optimizer", "sgd", "--clip_norm", "0.001", "--weight_decay", "0")
    start = weights(trainer)
    trainer.train_step(*patches(0), 1.0, 0)
    way = np.sqrt(sum(np.square(a - b).sum() for a, b in zip(start, weights(trainer))))
    assert 0 < way <= 0.0019 + 1e-6  # Nesterov's first step is 1.9 gradients long

    assert trainer_of("--optimizer", "sgd", "--weight_decay", "0.25").optimizer.weight_decay == 0.25


def test_the_model_is_built_as_asked(monkeypatch):
    made = []
    monkeypatch.setattr(
        models.from_options, "build_model", lambda *a, **k: made.append((*a, k)) or build(*a, **k)
    )
    words = "--model deeplab --fpn_min_level 2 --fpn_cells 4 --output_stride 8 --bn_momentum 0.5"
    trainer = Trainer(build_parser().parse_args(words.split()), 3, World())
    name, _, classes, more = made[0]
    assert (name, classes) == ("deeplab", 3)
    assert {k: v for k, v in more.items() if k != "batch_norm"} == {
        "fpn_min_level": 2, "fpn_cells": 4, "output_stride": 8, "bn_momentum": 0.5
    }  # fmt: skip
    images = patches(0)[0]
    expected = trainer.model(normalise("deeplab", images), training=False)
    np.testing.assert_allclose(trainer.network(images, False), expected, rtol=1e-5, atol=1e-6)


def test_start_weights_are_of_the_seed(trainer_of):
    first, same, other = (weights(trainer_of("--seed", seed)) for seed in "001")
    assert all(np.array_equal(a, b) for a, b in zip(first, same))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other))


def test_hard_mining_is_as_hard_as_asked(monkeypatch):
    made = []
    monkeypatch.setattr("training.mining.HardMiner", lambda *words: made.append(words) or [])
    options = build_parser().parse_args(["--hard_mining_threshold", "0.3", "--hard_mining_tries", "1"])
    mined(iter([]), None, options, World(), print)
    assert made[0][2:4] == (0.3, 1)


def test_validation_by_slide_and_by_patch_adds_up(trainer_of):
    trainer = trainer_of()
    found = [PatchInfo(f"s{i // 2}", i, 0, 256, True) for i in range(4)]

    class OneBatch:
        wait_seconds = 0.0
        dropped = MappingProxyType({"torn": ("it is torn", 3)})

        def __iter__(self):
            yield Batch(0, *patches(0), found)

    result = validate(trainer, OneBatch())
    images, labels = patches(0)
    confusions = patch_confusions(labels, trainer.evaluate_batch(images, labels)[1], 2)
    np.testing.assert_array_equal(sum(result.slides.values()), result.counts.confusion)
    np.testing.assert_array_equal(result.slides["s1"], confusions[2] + confusions[3])
    scores = [mean_iou(confusion) for confusion in confusions]
    assert [shown.miou for shown in result.worst] == sorted(scores)
    assert [shown.miou for shown in result.best] == sorted(scores, reverse=True)
    assert result.values()["slides"]["s0"]["pixels"] == 2 * 256**2
    assert result.values()["bad_slides"] == 1


def test_frozen_batch_norm_keeps_its_averages_and_else_they_move_with_the_momentum(trainer_of):
    trainer = trainer_of("--bn_momentum", "0.5")
    start = [v.numpy() for v in trainer.statistics]
    trainer.train_step(*patches(0), 1e-3, 0, frozen=True)
    assert all(np.array_equal(a, b) for a, b in zip(start, trainer.statistics))
    trainer.train_step(*patches(0), 1e-3, 1)
    moved = [np.abs(a - b).max() for a, b in zip(start, trainer.statistics)]
    assert min(moved) > 0


def test_pixel_weights_and_loss_are_those_asked_for(trainer_of):
    labels = np.zeros((1, 2, 2), np.uint8)
    labels[0, 0] = 1
    logits = tf.zeros((1, 2, 2, 2))
    assert float(trainer_of("--pos_pixel_weight", "3").loss(labels, logits)) == pytest.approx(
        2 * np.log(2), rel=1e-5
    )
    assert float(trainer_of("--neg_pixel_weight", "5").loss(labels, logits)) == pytest.approx(
        3 * np.log(2), rel=1e-5
    )
    assert float(trainer_of("--class_weights", "other:0", "Tumor:7").loss(labels, logits)) == pytest.approx(
        3.5 * np.log(2), rel=1e-5
    )
    assert float(trainer_of("--loss", "dice").loss(labels, logits)) < 0.6


def test_the_learning_rate_is_the_one_of_the_step(trainer_of):
    trainer = trainer_of("--optimizer", "sgd")
    trainer.train_step(*patches(0), 0.125, 0)
    assert float(trainer.optimizer.learning_rate) == 0.125
