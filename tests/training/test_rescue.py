"""The checkpoint of a run whose ranks do not go on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from tests.helpers.alike_ranks import AlikeRanks
from training import rescue
from training.checkpoint import Checkpointer, checkpoint_path, restore_checkpoint
from training.distributed_optimizer import update_variables
from training.optimizers import make_optimizer
from training.options import build_parser
from training.progress import Progress
from training.rescue import Rescue


@dataclass
class Bad:
    """Stands for a loader that found a bad slide."""

    dropped: dict[str, Any] = field(default_factory=lambda: {"a.tif": ("torn", 5)})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rescue:
    """What is kept of rank 0 of three, whose variable is 7: step 12, in whose midst an interval is."""
    monkeypatch.setattr(rescue, "UPDATE_SECONDS", 0.05)
    checkpointer = Checkpointer(tmp_path, tf.train.Checkpoint(v=tf.Variable([7.0])), 2, print)
    found = Rescue(AlikeRanks(size=3), checkpointer, Bad(), lambda: {"batch_size": 1, "model": "toy"}, bool)
    progress = Progress.begin(2)
    progress.step, progress.next_batch, progress.validation_due = 12, 4, True
    progress.interval.counts.images = 3
    progress.interval.start(0.0)
    found.keep(progress)
    progress.step, progress.next_batch = 15, 5  # as the next step does, which never ends
    return found


def test_the_run_goes_on_from_the_last_update(kept, tmp_path):
    assert kept.save() == f"a checkpoint of step 12 is in {tmp_path}"
    read = tf.train.Checkpoint(v=tf.Variable([0.0]))
    state = restore_checkpoint(checkpoint_path(tmp_path, 12), read)
    assert read.v.numpy() == [7.0]
    assert state["model"] == "toy"
    assert 0 < state["interval"]["seconds"] < 0.04  # less than the writing took
    options = build_parser().parse_args(["--batch_size", "1"])
    for rank, dropped in ((0, Bad().dropped), (1, {}), (2, {})):
        progress, remark = Progress.from_state(state, options, AlikeRanks(rank, 3), 2)
        assert (progress.step, progress.next_batch, progress.dropped, remark) == (12, 4, dropped, "")
        assert progress.validation_due
        assert progress.interval.counts.images == 3 * (rank == 0)


def test_what_is_there_already_or_being_written_stays(kept, tmp_path):
    with kept.checkpointer.lock:
        assert "this rank itself hangs while it writes" in kept.save()
    assert list(tmp_path.iterdir()) == []
    checkpoint_path(tmp_path, 12).mkdir()
    assert kept.save() == f"the checkpoint of step 12 is in {tmp_path}"
    assert list(checkpoint_path(tmp_path, 12).iterdir()) == []


def test_nothing_stays_of_a_checkpoint_during_which_the_ranks_went_on(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(rescue.time, "sleep", lambda _: kept.world.activity.begin("the next step"))
    assert kept.save() == ""
    assert list(tmp_path.iterdir()) == []
    assert not kept.checkpointer.lock.locked()


def test_a_full_disk_is_said(kept, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rescue, "save_checkpoint", full)
    assert kept.save() == (
        "no checkpoint could be written, the last one stays: [Errno 28] No space left on device"
    )


def test_other_ranks_keep_nothing_and_nothing_is_kept_after_the_training(kept):
    assert kept.ready
    kept.forget()
    other = Rescue(AlikeRanks(rank=1, size=3), kept.checkpointer, Bad(), dict, bool)
    other.keep(Progress.begin(2))
    assert (kept.ready, other.ready) == (False, False)


def ancestors(op: tf.Operation) -> set[str]:
    """Return the names of all operations that come before this one."""
    found: dict[str, tf.Operation] = {}
    queue = [op]
    while queue:
        op = queue.pop()
        for before in (*op.control_inputs, *(tensor.op for tensor in op.inputs)):
            if before.name not in found:
                found[before.name] = before
                queue.append(before)
    return set(found)


@pytest.mark.parametrize("accumulates", [False, True])
def test_no_variable_is_updated_before_all_that_is_reduced_is_there(accumulates):
    variables = [tf.Variable([float(number)]) for number in range(3)]
    optimizer = make_optimizer("adam", 0.5, clip_norm=0.0)
    optimizer._create_all_weights(variables)
    optimizer._agg_helper = SimpleNamespace(
        counter=tf.Variable(1)
    )  # Horovod's, when gradients are accumulated

    @tf.function
    def step(*tensors: tf.Tensor) -> None:
        *gradients, loss = (tf.identity(tensor, name="reduced") for tensor in tensors)
        update_variables(optimizer, list(zip(gradients, variables)), accumulates, loss)

    graph = step.get_concrete_function(*[tf.TensorSpec([1])] * 4).graph
    reduced = {op.name for op in graph.get_operations() if op.name.startswith("reduced")}
    updates = [op for op in graph.get_operations() if re.match("ResourceApply|Assign", op.type)]
    assert (len(reduced), len(updates)) == (4, 4 + accumulates)  # and that of the optimizer's iterations
    for update in updates:
        assert reduced <= ancestors(update), update.name
