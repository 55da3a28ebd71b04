"""A run that was ended and started again ends as one that was not."""

from __future__ import annotations

import json
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf

from tests.helpers.alike_ranks import AlikeRanks
from tests.helpers.launch import TIMEOUT, run_python, start_python, wait_for
from train import write_json
from training.checkpoint import read_state
from training.metrics import Counts
from training.option_checks import parse_options
from training.options import option_values
from training.progress import Interval, Progress
from training.resume import find_checkpoint, read_metrics
from utils.cli import EXIT_STOPPED, UserError
from utils.ranks.single import Ranks

TOY = "tests/helpers/toy_train.py"


def command(demo: Path, log_dir: Path, last: str = "--deterministic") -> list[str | Path]:
    words = (
        "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 24 --val_split 0.34 --validation_patches 4 "
        f"--log_every 6 --validate_every 12 --checkpoint_every 4 --keep_checkpoints 9 --fpn_min_level 3 {last}"
    )
    return [
        *(TOY, *words.split()),
        *("--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir),
    ]


def variables(log_dir: Path, step: int) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(log_dir / "checkpoints" / f"step_{step:09d}" / "variables"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in names}


def metrics(log_dir: Path) -> list[dict]:
    """Without what depends on the clock."""
    rows = read_metrics(log_dir)
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "sampler_wait", "seconds", "slides")}
        for row in rows
    ]


def stop_after(
    words: list[str | Path], log_dir: Path, step: int, number: signal.Signals, ranks: int = 1
) -> int:
    """Starts a run, sends the signal once the checkpoint of `step` is there, and waits for its end.

    With several ranks, one of them gets it.
    """
    process = start_python(words, ranks)
    wait_for((log_dir / "checkpoints" / f"step_{step:09d}").exists, process)
    if ranks == 1:
        process.send_signal(number)
    else:
        children = psutil.Process(process.pid).children(recursive=True)
        next(child for child in children if TOY in child.cmdline()).send_signal(number)
    process.communicate(timeout=TIMEOUT)
    return process.returncode


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log_dir of a run from begin to end."""
    log_dir = tmp_path_factory.mktemp("whole") / "log"
    done = run_python(command(demo, log_dir))
    assert done.returncode == 0, done.stderr
    return log_dir


def test_the_same_bits_after_kill_stop_and_a_torn_checkpoint(whole, demo, tmp_path, monkeypatch):
    log_dir = tmp_path / "log"
    words = command(demo, log_dir)
    monkeypatch.setenv(
        "TOY_KILLED_AT", "12"
    )  # in a validation, whose row of metrics.jsonl is written already
    assert run_python(words).returncode == -signal.SIGKILL
    state = read_state(log_dir / "checkpoints" / "step_000000012")
    assert (state["validation_due"], state["best"]) == (True, [-1.0, -1])
    assert read_metrics(log_dir)[-1]["split"] == "val"
    monkeypatch.delenv("TOY_KILLED_AT")
    assert stop_after(words, log_dir, 16, signal.SIGTERM) == EXIT_STOPPED
    state = read_state(log_dir / "checkpoints" / "step_000000012")
    assert (state["validation_due"], state["best"][1]) == (False, 12)
    newest = max((log_dir / "checkpoints").iterdir())
    data = next(newest.glob("variables.data*"))
    data.write_bytes(data.read_bytes()[:1000])

    refused = run_python([*words, "--learning_rate", "0.5"])
    assert refused.returncode == 2
    assert "--learning_rate was 0.002, is 0.5" in refused.stderr

    done = run_python(words)
    assert done.returncode == 0, done.stderr
    assert f"not used: {newest}" in done.stderr
    assert metrics(log_dir) == metrics(whole)
    expected, found = variables(whole, 24), variables(log_dir, 24)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name].tobytes() != found[name].tobytes()] == []


def test_a_finished_run_only_says_its_result(whole, demo):
    done = run_python(command(demo, whole))
    assert done.returncode == 0, done.stderr
    assert "goes on at step 24" in done.stdout
    last = read_metrics(whole)[-1]
    assert done.stdout.splitlines()[-1] == f"validation mIoU {last['miou']:.4f} (step 24)"


def test_resume_force_goes_on_with_other_options(demo, tmp_path, capsys):
    folders = ["--slide_path", str(demo / "slides"), "--log_dir", str(tmp_path)]
    write_json(option_values(parse_options(folders)), tmp_path / "options.json")
    assert find_checkpoint(parse_options(folders)) is None
    other = [*folders, "--learning_rate", "0.5"]
    with pytest.raises(UserError, match=r"--learning_rate was 0.002, is 0.5"):
        find_checkpoint(parse_options(other))
    capsys.readouterr()
    assert find_checkpoint(parse_options([*other, "--resume_force"])) is None
    assert "warning: the run in" in capsys.readouterr().err


def test_resume_without_log_dir_is_refused(demo):
    words = ["--slide_path", demo / "slides", "--label_path", demo / "masks"]
    done = run_python(["train.py", *words, "--img_size", "128", "--resume"])
    assert done.returncode == 2
    assert "--resume needs the --log_dir" in done.stderr


@pytest.mark.mpi
def test_two_ranks_go_on_after_a_signal_to_one_of_them(demo, tmp_path, monkeypatch):
    last = "--freeze_bn 0"
    whole, log_dir = tmp_path / "whole", tmp_path / "log"
    done = run_python(command(demo, whole, last), ranks=2)
    assert done.returncode == 0, done.stderr

    # It comes where a validation is due. Ranks that do not write must wait: once one has ended, the launcher
    # ends all a second later.
    monkeypatch.setenv("TOY_WRITE_SECONDS", "2")
    assert stop_after(command(demo, log_dir, last), log_dir, 8, signal.SIGUSR1, ranks=2) == EXIT_STOPPED
    assert max((log_dir / "checkpoints").iterdir()).name > "step_000000008"
    monkeypatch.delenv("TOY_WRITE_SECONDS")
    done = run_python(command(demo, log_dir, last), ranks=2)
    assert done.returncode == 0, done.stderr
    assert len(metrics(log_dir)) == len(metrics(whole))
    for row, expected in zip(metrics(log_dir), metrics(whole)):
        assert row == pytest.approx(expected, rel=1e-3)
    expected, found = variables(whole, 24), variables(log_dir, 24)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_another_number_of_ranks_goes_on_behind_what_was_seen():
    ranks = [{"next_batch": 7, "dropped": {"a": ["torn", 3]}}, {"next_batch": 9, "dropped": {}}]
    counts = Counts(2)
    counts.images = 12
    interval = {
        "counts": counts.packed().tolist(),
        "start_step": 20,
        "seconds": 5.0,
        "candidates": 8,
        "rejected": 3,
    }
    state = {"step": 32, "batch_size": 2, "ranks": ranks, "best": [0.5, 16], "validations": 1, "miou": 0.4,
             "interval": interval, "validation_due": True, "longest_pause": 9.0}  # fmt: skip
    options = parse_options(["--slide_path", "."])
    same, remark = Progress.from_state(state, options, Ranks(1, 2), 2)
    assert (same.step, same.next_batch, same.dropped, remark) == (32, 9, {}, "")
    assert (same.validation_due, same.longest_pause, same.interval.candidates) == (True, 9.0, 0)
    assert (same.interval.start_step, same.interval.counts.images) == (32, 0)
    first, _ = Progress.from_state(state, options, Ranks(0, 2), 2)
    assert (first.dropped, first.interval.candidates, first.interval.rejected) == ({"a": ("torn", 3)}, 8, 3)
    assert (first.interval.start_step, first.interval.clock.seconds, first.interval.counts.images) == (
        20,
        5.0,
        12,
    )
    other, remark = Progress.from_state(state, options, Ranks(0, 1), 2)
    assert (other.step, other.next_batch, other.best, other.validations) == (32, 16, (0.5, 16), 1)
    assert "it had 2 ranks with batch 2: the order of the patches differs" in remark


def test_ranks_that_share_patches_have_one_state_together_which_any_number_of_them_goes_on_from():
    progress = [Progress(Interval(Counts(2), 4), 8, next_batch=3 + rank // 2) for rank in range(4)]
    places = [AlikeRanks(rank, 4, ranks_per_patch=2) for rank in range(4)]
    # All ranks give the same to the `gather` of this stand-in, so of rank 2 there are two states with a batch of 4.
    state = {**progress[2].to_state(places[2]), "batch_size": 2}
    assert [mine["next_batch"] for mine in state["ranks"]] == [4, 4]
    state["ranks"] = [{"next_batch": 3, "dropped": {}}, {"next_batch": 4, "dropped": {"a": ["torn", 3]}}]
    options = parse_options(["--slide_path", "."])
    for world in (*places[2:], Ranks(1, 2), AlikeRanks(7, 8, ranks_per_patch=4)):
        found, remark = Progress.from_state(state, options, world, 2)
        assert (found.next_batch, found.dropped, remark) == (4, {"a": ("torn", 3)}, "")
    other, remark = Progress.from_state(state, options, AlikeRanks(1, 2, ranks_per_patch=2), 2)
    assert other.next_batch == 4  # 8 images of one group with 2 at a time
    assert "it had 2 groups of ranks with batch 2: the order of the patches differs" in remark


def test_every_field_of_the_progress_comes_back():
    progress = Progress(
        Interval(Counts(2), 4, candidates=5, rejected=2),
        8,
        (0.5, 4),
        1,
        0.25,
        True,
        7.0,
        3,
        {"a": ("torn", 2)},
        True,
        True,
    )
    assert [
        f.name for f in fields(Progress) if getattr(progress, f.name) == f.default
    ] == []  # none was forgotten
    state = json.loads(json.dumps({**progress.to_state(Ranks()), "batch_size": 2}))
    found, remark = Progress.from_state(state, parse_options(["--slide_path", "."]), Ranks(), 2)
    assert remark == ""
    for name in (f.name for f in fields(Progress) if f.name != "interval"):
        assert getattr(found, name) == getattr(progress, name), name
    assert found.interval.to_state(Ranks()) == progress.interval.to_state(Ranks())


@pytest.mark.slow
def test_a_debug_run_leaves_nothing_that_binds(demo, tmp_path):
    """The README says to run with --debug first: the real run goes to the same --log_dir, and so may a second one."""
    log_dir = tmp_path / "log"
    for _ in range(2):
        done = run_python([*command(demo, log_dir), "--debug"])
        assert done.returncode == 0, done.stderr
        assert "goes on at" not in done.stdout
    assert [path.name for path in log_dir.iterdir()] == ["debug"]
    options = parse_options([str(word) for word in command(demo, log_dir, "--learning_rate 0.5")[1:]])
    assert find_checkpoint(options) is None
