"""A hundred updates of EfficientDet-D0 on strips, against one process and one that adds in another order.

A run of one process learns 200 updates and freezes its batch norm; the last 100 go on from its checkpoint in three
ways. From random weights float32 shows nothing: with batch norm of two patches the rounding grows until one process
with another number of threads has other losses altogether, as the strips have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from samplers import training_loader
from tests.helpers.launch import run_python
from training.data import prepare_slides, sampler_config
from training.option_checks import parse_options
from training.resume import read_metrics
from utils.ranks.world import World

pytestmark = [pytest.mark.slow, pytest.mark.mpi]
HOUR = 3600  # seconds; on cores that other work shares
STEPS, LEARNT = 600, 400  # images, two an update
# Of losses, and of probabilities. Strips were 6e-4 and 6e-4 apart once, another number of threads 1e-5 and
# 7e-5. The bars leave room for other CPUs.
CLOSE, CLOSE_PIXELS = 2e-3, 0.05


def words(slides: Path, log_dir: Path) -> list[str | Path]:
    options = (
        f"--img_size 256 --batch_size 2 --num_steps {STEPS} --log_every 2 --checkpoint_every {LEARNT} "
        "--keep_checkpoints 9 --validate_every 100000 --validation_patches 64 --val_split 0.34 --data_sampler surf "
        "--batch_tumor_ratio 0.5 --fpn_min_level 3 --learning_rate 2e-3 --freeze_bn 0.34 --mixed_precision float32 "
        "--no_cuda --seed 0"
    )
    return [
        *options.split(),
        *("--slide_path", slides / "slides", "--label_path", slides / "masks", "--log_dir", log_dir),
    ]


def run(command: list[str | Path], ranks: int, **environment: str) -> None:
    done = run_python(["train.py", *command], ranks, timeout=HOUR, **environment)
    assert done.returncode == 0, done.stderr


def losses(log_dir: Path) -> dict[int, float]:
    """Return the losses of the last updates, by step."""
    rows = read_metrics(log_dir)
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train" and row["step"] > LEARNT}


def largest(found: Mapping[int, float], expected: Mapping[int, float]) -> float:
    """Return the largest difference of the losses of the same steps."""
    assert found.keys() == expected.keys()
    return max(abs(found[step] - expected[step]) for step in expected)


def tumour(log_dir: Path, images: np.ndarray) -> np.ndarray:
    """Return the probability of tumour of the exported model, float32 (B, H, W)."""
    return np.asarray(tf.saved_model.load(str(log_dir / "model"))(tf.constant(images)))[..., 1]


def test_strips_train_as_one_process_does(shared_data, tmp_path):
    slides, whole = shared_data / "camelyon16_like", tmp_path / "whole"
    run(words(slides, whole), 1)
    folders = {name: tmp_path / name for name in ("strips", "reordered")}
    for folder in folders.values():
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("model", f"step_{STEPS:09d}"))
    run([*words(slides, folders["strips"]), "--ranks_per_patch", "2"], 2)
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})  # the process that is started has one thread
        run(words(slides, folders["reordered"]), 1)
    finally:
        os.sched_setaffinity(0, cores)

    options = parse_options([str(word) for word in words(slides, whole)])
    train, _, label_map, _ = prepare_slides(options, World(), whole)
    with training_loader(train, sampler_config(options, label_map), 0, 1, 0, start=STEPS) as loader:
        images = next(iter(loader)).images.copy()
    expected = losses(whole)
    assert len(expected) == (STEPS - LEARNT) // 2
    mious = {name: read_metrics(folder)[-1]["miou"] for name, folder in {"whole": whole, **folders}.items()}
    pixels = tumour(whole, images)
    for name, folder in folders.items():
        difference = largest(losses(folder), expected)
        apart = np.abs(tumour(folder, images) - pixels).max()
        print(
            f"{name}: losses {difference:.1e}, mIoU {mious[name]:.4f} ({mious['whole']:.4f}), pixels {apart:.1e}"
        )
        assert difference < CLOSE, name
        assert mious[name] == pytest.approx(mious["whole"], abs=0.005), name
        assert apart < CLOSE_PIXELS, name
