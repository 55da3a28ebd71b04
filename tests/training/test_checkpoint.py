"""Checkpoints that are torn, foreign or whole."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf

from training.checkpoint import (
    Checkpointer,
    CheckpointError,
    latest_checkpoint,
    prune_checkpoints,
    read_state,
    restore_checkpoint,
    save_checkpoint,
)


def saved(folder: Path, step: int, value: float = 1.0) -> Path:
    checkpoint = tf.train.Checkpoint(v=tf.Variable([value, 2.0]))
    return save_checkpoint(folder, checkpoint, {"step": step, "next_batch": 3})


def test_restores_what_was_saved(tmp_path):
    saved(tmp_path, 10, 5.0)
    v = tf.Variable([0.0, 0.0])
    state = restore_checkpoint(latest_checkpoint(tmp_path)[0], tf.train.Checkpoint(v=v))
    np.testing.assert_array_equal(v, [5.0, 2.0])
    assert (state["step"], state["next_batch"]) == (10, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000010"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "no state", "empty", "no sums", "no sum"])
def test_torn_checkpoint_is_said_and_the_one_before_used(tmp_path, harm):
    before, torn = saved(tmp_path, 10), saved(tmp_path, 20)
    data = next(torn.glob("variables.data*"))
    content = bytearray(data.read_bytes())
    if harm == "truncate":
        data.write_bytes(content[:-1])
    elif harm == "flip":
        content[-1] ^= 1
        data.write_bytes(content)
    elif harm in ("no sums", "no sum"):  # a state.json that vouches for no file, or not for this one
        state = json.loads((torn / "state.json").read_text())
        state["files"] = (
            {} if harm == "no sums" else {k: v for k, v in state["files"].items() if k != data.name}
        )
        (torn / "state.json").write_text(json.dumps(state))
    elif harm == "no state":
        (torn / "state.json").unlink()
    else:
        for path in torn.iterdir():
            path.unlink()
    path, bad = latest_checkpoint(tmp_path)
    assert path == before
    assert len(bad) == 1
    assert str(torn) in bad[0]


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    other = tf.train.Checkpoint(w=tf.Variable([1.0, 2.0]))
    with pytest.raises(CheckpointError, match="another model"):
        restore_checkpoint(saved(tmp_path, 1), other)


def test_prune_keeps_newest_and_best(tmp_path):
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    prune_checkpoints(tmp_path, newest=4, keep=2, best_step=1)
    assert sorted(read_state(p)["step"] for p in tmp_path.iterdir()) == [1, 3, 4]


def checkpointer_of(folder: Path, keep: int) -> tuple[Checkpointer, list[str]]:
    warnings: list[str] = []
    return Checkpointer(folder, tf.train.Checkpoint(v=tf.Variable(1.0)), keep, warnings.append), warnings


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def test_a_torn_checkpoint_of_a_later_step_does_not_cost_the_new_ones(tmp_path):
    for step in (2000, 4000):
        (saved(tmp_path, step) / "state.json").write_text("{")
    checkpointer, _ = checkpointer_of(tmp_path, 1)
    for step in (500, 1000):
        checkpointer.save({"step": step, "best": (-1.0, -1)}, must=True)
        assert steps_in(tmp_path) == [step, 2000, 4000]
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "step_000001000"


def test_a_checkpoint_that_cannot_be_deleted_is_no_failure_of_the_new_one(tmp_path, monkeypatch):
    checkpointer, warnings = checkpointer_of(tmp_path, 1)
    checkpointer.save({"step": 10, "best": (-1.0, -1)}, must=True)

    def busy(path: Path) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("training.checkpoint.shutil.rmtree", busy)
    checkpointer.save({"step": 20, "best": (-1.0, -1)}, must=True)
    assert steps_in(tmp_path) == [10, 20]
    assert "an old checkpoint cannot be deleted" in warnings[0]


def test_a_best_checkpoint_that_was_not_written_does_not_cost_the_best_one_there_is(tmp_path, monkeypatch):
    checkpointer, _ = checkpointer_of(tmp_path, 1)
    checkpointer.save({"step": 10, "best": (0.8, 10)}, must=False)
    with monkeypatch.context() as full:
        full.setattr("training.checkpoint.save_checkpoint", Mock(side_effect=OSError("No space left")))
        checkpointer.save({"step": 20, "best": (0.8, 10)}, must=False)
    for step in (30, 40):
        checkpointer.save({"step": step, "best": (0.81, 20)}, must=False)
    assert steps_in(tmp_path) == [10, 40]


def test_a_score_is_added_to_a_checkpoint_and_decides_what_is_kept(tmp_path, monkeypatch):
    warnings: list[str] = []
    checkpointer = Checkpointer(tmp_path, tf.train.Checkpoint(v=tf.Variable(1.0)), 1, warnings.append)
    for step, best in ((10, 10), (20, 10), (30, 30)):
        checkpointer.save({"step": step, "best": (0.5, 10), "validation_due": True}, must=True)
        assert {10, step} == {read_state(path)["step"] for path in tmp_path.iterdir()}
        checkpointer.add_score(step, {"best": (0.5, best), "validation_due": False})
        state = read_state(tmp_path / f"step_{step:09d}")
        assert (state["best"], state["validation_due"]) == ([0.5, best], False)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000030"]
    checkpointer.add_score(40, {"best": (0.6, 40)})  # its checkpoint could not be written

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("training.checkpoint.write_atomically", full)
    checkpointer.add_score(30, {"best": (0.7, 30)})
    assert warnings == ["warning: the score of step 30 is not in its checkpoint, the run goes on: "
                        "No space left on device"]  # fmt: skip
    assert read_state(tmp_path / "step_000000030")["best"] == [0.5, 30]


def test_failed_write_leaves_the_one_before(tmp_path, monkeypatch):
    before = saved(tmp_path, 1)
    monkeypatch.setattr(
        "training.checkpoint._crc32", lambda path: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        saved(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [before.name]
    assert latest_checkpoint(tmp_path) == (before, [])
