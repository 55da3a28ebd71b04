"""Which cores and GPUs each of several runs on a host takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch import ROOT
from utils.cli import UserError
from utils.ranks import host_share
from utils.ranks.host_share import Share, cpus_of_share, gpus_of_share


def shares(parts: int) -> list[Share]:
    return [Share(part, parts) for part in range(1, parts + 1)]


def test_cores_are_divided_evenly_and_completely():
    found = [cpus_of_share(share, range(10), lambda cpu: (0, cpu)) for share in shares(4)]
    assert found == [{0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}]


def test_the_threads_of_a_core_and_the_cores_of_a_socket_stay_together():
    """Linux numbers the second threads of all cores after the first ones, and often the sockets in turns."""
    place = {cpu: (cpu % 2, cpu % 8 // 2) for cpu in range(16)}
    found = [cpus_of_share(share, place, place.__getitem__) for share in shares(2)]
    assert found == [{0, 2, 4, 6, 8, 10, 12, 14}, {1, 3, 5, 7, 9, 11, 13, 15}]
    found = [cpus_of_share(share, place, place.__getitem__) for share in shares(4)]
    assert found[0] == {0, 2, 8, 10}


def test_hardware_threads_are_divided_where_there_are_fewer_cores_than_shares():
    assert [cpus_of_share(share, {3, 7}, lambda _: (0, 0)) for share in shares(2)] == [{3}, {7}]


def test_only_cores_that_the_process_may_use_are_divided():
    assert cpus_of_share(Share(2, 2), {5, 9, 11}, lambda cpu: (0, cpu)) == {9, 11}


def test_more_runs_than_cores_are_refused():
    with pytest.raises(
        UserError, match=r"3 runs at once are to share .*, which has 2 cores .* smaller AT_ONCE$"
    ):
        cpus_of_share(Share(1, 3), {0, 1}, lambda cpu: (0, cpu))


@pytest.mark.parametrize(
    ("visible", "parts", "expected"),
    [
        (None, 2, ["0,1", "2,3"]),  # all that the driver knows
        ("4,5", 2, ["4", "5"]),  # those of the job
        ("GPU-aa, GPU-bb", 2, ["GPU-aa", "GPU-bb"]),
        ("-1", 2, ["-1", "-1"]),
        ("NoDevFiles", 2, ["NoDevFiles", "NoDevFiles"]),
    ],
)
def test_gpus_are_divided(visible, parts, expected, monkeypatch):
    monkeypatch.setattr(host_share, "ask_driver", lambda what: ["0", "1", "2", "3"])
    assert [gpus_of_share(share, visible) for share in shares(parts)] == expected


def test_fewer_gpus_than_runs_are_refused_and_none_are_well(monkeypatch):
    monkeypatch.setattr(host_share, "ask_driver", lambda what: [])
    assert gpus_of_share(Share(1, 2), None) is None
    with pytest.raises(UserError, match=r"has 1 GPUs for them: .* smaller AT_ONCE, or --no_cuda"):
        gpus_of_share(Share(1, 2), "0")


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "a/b"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UserError, match="is not PART/PARTS"):
        Share.parse(text)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
@pytest.mark.parametrize(("more", "gpus"), [([], "7"), (["--no_cuda"], "6,7")])
def test_the_program_has_its_share(more, gpus, tmp_path: Path):
    code = "import os, sys; print(*os.sched_getaffinity(0)); print(os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[1])"
    command = [
        sys.executable,
        "-m",
        "utils.ranks.host_share",
        "2/2",
        sys.executable,
        "-c",
        code,
        "a b",
        *more,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "6,7"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    cores, rest = done.stdout.splitlines()
    assert {int(core) for core in cores.split()} == cpus_of_share(Share(2, 2), os.sched_getaffinity(0))
    assert rest == f"{gpus} a b"


def test_a_share_that_cannot_be_had_is_said_in_one_line():
    command = [
        sys.executable,
        "-m",
        "utils.ranks.host_share",
        "1/4000",
        sys.executable,
        "-c",
        "",
        "--no_cuda",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "4000 runs at once are to share" in done.stderr
