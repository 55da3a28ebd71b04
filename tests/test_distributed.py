"""Two ranks under mpirun."""

import json
from pathlib import Path

import pytest

from tests.launch import run_python

SCRIPT = Path(__file__).parent / "rank_weights.py"


def weights(*words: str) -> dict:
    done = run_python([SCRIPT, *words], ranks=2)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.mpi
@pytest.mark.parametrize("words", [(), ("--fp16_allreduce",)])
def test_ranks_hold_identical_weights_after_training(words):
    result = weights(*words)
    assert result["variables"] > 500
    assert result["different"] == []
    assert result["losses"][0] == result["losses"][1]


@pytest.mark.mpi
def test_ranks_would_differ_without_horovods_optimizer():
    assert len(weights("--unwrapped")["different"]) > 100


@pytest.mark.mpi
def test_no_horovod_under_a_launcher_is_refused(tmp_path):
    done = run_python(["train.py", "--no-horovod", "--slide_path", tmp_path], ranks=2)
    assert done.returncode == 2
    assert "2 ranks" in done.stderr
