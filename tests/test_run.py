"""train.py in this process up to its loop: what becomes of the options before the first step."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import models.from_options
import predict
import samplers
import train
from tests.helpers.toy_models import pixelwise, randomise
from training.loop import Loop
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks import devices


class NoLoader:
    """Stands for the loader: nothing is drawn, and no process started."""

    def __init__(self, *words: Any, **more: Any) -> None:
        self.words = words

    def __enter__(self) -> NoLoader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def started(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts train.py with a toy model on the demo's slides: the loop that would run."""
    loops: list[Loop] = []
    monkeypatch.setattr(models.from_options, "build_model", pixelwise)
    monkeypatch.setattr(samplers, "Loader", NoLoader)
    monkeypatch.setattr(train, "train", lambda loop, names: loops.append(loop) or 0)

    def start(*words: str) -> Loop:
        folders = ["--slide_path", str(demo / "slides"), "--label_path", str(demo / "masks")]
        small = "--img_size 256 --data_sampler surf --val_split 0.34 --log_dir"
        options = parse_options([*folders, *small.split(), str(tmp_path / "log"), *words])
        assert train.run(options) == 0
        return loops.pop()

    return start


def test_both_loaders_have_the_processes_that_were_asked_for(started):
    loop = started("--sample_processes", "3", "--batch_size", "5")
    for loader in (loop.loader, loop.validator.loader):
        assert loader.words[1:4] == (5, 256, 3)


def test_the_model_has_the_classes_of_the_label_map(started, tmp_path):
    loop = started("--label_map", "255:2", "--profile", "20:24")
    assert (loop.trainer.num_classes, loop.samples.config.label_map.num_classes) == (3, 3)
    assert loop.profiler.steps == (20, 24)
    assert (tmp_path / "log" / "options.json").exists()


def test_weights_are_loaded(started, tmp_path, capsys):
    stored = randomise(pixelwise("effdetd0", None, 2), seed=1)
    stored.save_weights(tmp_path / "a.h5")
    trainer = started("--weights_path", str(tmp_path / "a.h5")).trainer
    assert (
        f"a.h5: loaded {len(stored.variables)} of {len(stored.variables)} variables"
        in capsys.readouterr().out
    )
    for found, expected in zip(trainer.model.variables, stored.variables):
        np.testing.assert_array_equal(found, expected)


def test_weights_that_are_cut_short_are_the_users_error_in_one_line(started, tmp_path):
    file = tmp_path / "a.h5"
    pixelwise("effdetd0", None, 2).save_weights(file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=re.escape(f"{file}: cannot be read as weights")) as caught:
        started("--weights_path", str(file))
    assert "\n" not in str(caught.value)


def test_a_log_dir_that_cannot_be_written_is_found_before_the_slides_are(started, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(train, "prepare_slides", Mock(side_effect=AssertionError("slides were checked")))
    with pytest.raises(UserError, match=re.escape(f"--log_dir {tmp_path}/file/run cannot be written: ")):
        started("--log_dir", f"{tmp_path}/file/run")


@pytest.mark.parametrize("program", [train, predict])
def test_both_programs_set_the_environment_before_they_run(program, tmp_path, monkeypatch):
    for name in (
        "TF_CPP_MIN_LOG_LEVEL",
        "CUDA_VISIBLE_DEVICES",
        "HOROVOD_CYCLE_TIME",
        "HOROVOD_STALL_CHECK_DISABLE",
    ):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)
    found = []
    names = ("CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(
        program, "run", lambda *_: found.append([os.environ.get(name) for name in names]) or 0
    )
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "a.tif").touch()
    words = ["--slide_path", str(tmp_path)]
    if program is predict:
        words += ["--model_path", str(tmp_path), "--output", str(tmp_path / "out")]
    assert [program.main([*words, *more]) for more in (["--verbose"], ["--no_cuda"])] == [0, 0]
    assert found == [[None, None], ["-1", "2"]]


@pytest.mark.parametrize("program", [train, predict])
@pytest.mark.parametrize("no_cuda", [False, True])
def test_both_programs_choose_devices_as_asked(program, no_cuda, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "select_devices", lambda _, no_cuda: asked.append(no_cuda) or 1 / 0)
    options = parse_options(["--slide_path", str(tmp_path), *["--no_cuda"] * no_cuda])
    with pytest.raises(ZeroDivisionError):
        program.run(options, *[None] * 2 * (program is predict))
    assert asked == [no_cuda]
