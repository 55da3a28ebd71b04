"""Ranks under mpirun (or mpiexec.hydra): equal to each other, and to one process with the same patches."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.launch import run_python

SCRIPT = Path(__file__).parents[1] / "helpers" / "rank_weights.py"
ONE, TWO = (
    ("plain", "plain_reordered", "plain_rounded", "frozen", "frozen_reordered", "accumulate"),
    ("plain", "sync", "recompute", "fp16", "accumulate", "unwrapped"),
)

# The same computation in another order is this many times as far away as the CPU's own rounding carries it.
NOISE = 4
LEFT_OUT = ("conv/bias:0", "moving_variance:0")
KERNEL = "efficientnet-b0/stem/conv2d/kernel:0"

pytestmark = pytest.mark.mpi


class Trained:
    """What `rank_weights.py` printed and wrote."""

    def __init__(self, folder: Path, ranks: int, cases: tuple[str, ...]) -> None:
        done = run_python([SCRIPT, folder / f"{ranks}.npz", *cases], ranks=ranks)
        assert done.returncode == 0, done.stderr
        self.ranks, self.stderr = ranks, done.stderr
        self.report = json.loads(done.stdout.strip().splitlines()[-1])
        with np.load(folder / f"{ranks}.npz") as arrays:
            self.arrays = dict(arrays)

    def vector(self, case: str, kind: str) -> np.ndarray:
        """All variables, "start" or "weights", as one vector.

        In float32 without the biases in front of a batch norm: their gradient is 0 but for rounding, of which Adam
        makes steps of full length. And without moving variances: Keras's fused batch norm, which is there for
        float32 only, takes n / (n - 1) of the variance, Horovod's the variance.
        """
        prefix, left_out = f"{case}/{kind}/", () if case.endswith("_float64") else LEFT_OUT
        return np.concatenate(
            [
                value.ravel()
                for name, value in self.arrays.items()
                if name.startswith(prefix) and not name.endswith(left_out)
            ]
        )


def distance(a: Trained, case_a: str, b: Trained, case_b: str) -> float:
    """Between the weights, relative to the way from the start."""
    start, end_a, end_b = a.vector(case_a, "start"), a.vector(case_a, "weights"), b.vector(case_b, "weights")
    np.testing.assert_array_equal(start, b.vector(case_b, "start"))
    found = float(np.linalg.norm(end_a - end_b) / np.linalg.norm(end_a - start))
    print(f"{case_a} of {a.ranks}, {case_b} of {b.ranks} ranks: {found:.2g} of the way")
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("one"), 1, ONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("two"), 2, TWO)


@pytest.fixture(scope="module")
def same(one) -> dict[str, float]:
    """For batch norm in training and frozen, the distance below which two runs differ by float32's rounding alone.

    It comes from runs of one process on this CPU that differ in nothing but the order of the patches in a batch.
    """
    return {case: NOISE * distance(one, case, one, f"{case}_reordered") for case in ("plain", "frozen")}


@pytest.mark.parametrize("case", ["plain", "sync", "recompute", "fp16", "accumulate"])
def test_ranks_hold_identical_weights_after_training(two, case):
    report = two.report[case]
    assert report["variables"] > 300
    assert report["different"] == 0
    assert report["losses"][0] == report["losses"][1]


def test_synchronised_batch_norm_gives_no_warning_of_keras(two):
    assert "UserWarning" not in two.stderr


def test_ranks_would_differ_without_horovods_optimizer(two):
    assert two.report["unwrapped"]["different"] > 100


def test_two_ranks_with_synchronised_batch_norm_are_one_with_twice_the_batch(one, two, same):
    assert distance(one, "plain", two, "sync") < same["plain"]
    assert distance(one, "plain", two, "plain") > 10 * same["plain"]  # the batch norms of the ranks differ


@pytest.mark.slow
def test_float64_shows_that_rounding_is_all_that_synchronised_batch_norm_differs_by(tmp_path):
    one, two = Trained(tmp_path, 1, ("plain_float64",)), Trained(tmp_path, 2, ("sync_float64",))
    assert one.vector("plain_float64", "weights").dtype == np.float64
    assert distance(one, "plain_float64", two, "sync_float64") < 1e-11


def test_recomputed_activations_have_the_same_synchronised_statistics(two, same):
    assert distance(two, "sync", two, "recompute") < same["plain"]


def test_fp16_allreduce_changes_the_weights_as_much_as_rounding_the_gradients_does(one, two):
    rounding = distance(one, "plain", one, "plain_rounded")
    assert rounding / NOISE < distance(two, "sync", two, "fp16") < rounding * NOISE


def test_accumulated_batches_are_one_of_their_size(one, two, same):
    assert distance(one, "frozen", one, "accumulate") < same["frozen"]
    assert distance(one, "frozen", two, "accumulate") < same["frozen"]


def test_adasum_and_what_overflows_on_one_rank_keep_ranks_equal(tmp_path):
    trained = Trained(tmp_path, 2, ("adasum", "float16"))
    assert trained.report["adasum"]["different"] == 0
    assert trained.report["float16"]["different"] == 0
    # Three steps of which each overflowed on rank 1 alone: skipped by both, with half the scale each time.
    assert trained.report["float16"]["scales"] == [2.0**97, 2.0**97]
    start, end = (trained.arrays[f"float16/{kind}/{KERNEL}"] for kind in ("start", "weights"))
    np.testing.assert_array_equal(start, end)


def test_a_killed_rank_is_named_and_ends_the_job():
    code = (
        "import os, signal\n"
        "from utils.ranks.world import init_world\n"
        "world = init_world(True)\n"
        "world.barrier()\n"
        "if world.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "world.barrier()"
    )
    start = time.monotonic()
    done = run_python(["-c", code], ranks=2)
    assert done.returncode != 0
    assert "[rank 1] process" in done.stderr
    assert time.monotonic() - start < 60


def test_no_horovod_under_a_launcher_is_refused(tmp_path):
    done = run_python(["train.py", "--no-horovod", "--slide_path", tmp_path], ranks=2)
    assert done.returncode == 2
    assert "2 ranks" in done.stderr
