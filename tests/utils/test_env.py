"""utils/env.sh: which environment a call takes, and when it is made, brought up to date or left alone.

Nothing is installed or compiled: stand-ins for python, nvcc and the like write down what they are asked for.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.helpers.launch import ROOT

# Stands for each Python. The file `nccl` in $STATE says what a wheel with NCCL does: "fails" to compile or to "load".
PYTHON = """#!/bin/sh
note() { echo "$*" >>"$STATE/notes"; }
case "$*" in
*"-m venv"*)
    for last; do :; done
    note "venv $last" && rm -rf "$last" && mkdir -p "$last/bin"
    cp "$0" "$last/bin/python" && echo "${0##*/}" >"$last/version" ;;
*"pip"*" wheel "*)
    note "compile ${HOROVOD_GPU_OPERATIONS:-plain}"
    [ -z "${HOROVOD_GPU_OPERATIONS:-}" ] || [ "$(cat "$STATE/nccl" 2>/dev/null)" != fails ] || exit 1
    while [ "$1" != -w ]; do shift; done
    echo "${HOROVOD_GPU_OPERATIONS:-plain}" >"$2/horovod-0.whl" ;;
*"pip"*" install "*.whl)
    for last; do :; done
    note "install $(cat "$last")" && cp "$last" "${0%/*}/horovod" ;;
*"pip"*" install "*tensorflow*) note "install ${*##* }" ;;
*"built without"*nccl) grep -q NCCL "${0%/*}/horovod" && [ "$(cat "$STATE/nccl" 2>/dev/null)" != loads-not ] ;;
*"built without"*) grep -q . "${0%/*}/horovod" ;;
*nvidia.nccl*) echo "$STATE" ;;
*importlib.metadata*nccl*) echo 2.27 ;;
*platform.machine*) echo py313-x86_64 ;;
*sys.version\\)) cat "${0%/*}/../version" 2>/dev/null || echo "${0##*/}" ;;
"- "*) [ "$3" = "$(cat "${0%/*}/../version")" ] ;; # env_is_sound
esac
"""
NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V{}'\necho '#$ TOP=/cuda/bin/..'\n"
NO_NVCC = "#!/bin/sh\nexit 127\n"


class Clone:
    """A clone with the scripts of the set-up, and stand-ins for all that they start."""

    def __init__(self, top: Path, state: Path) -> None:
        self.top, self.state = top, state
        self.tools = state / "bin"
        self.tools.mkdir(parents=True, exist_ok=True)
        for name in ("requirements.txt", "tests/requirements.txt", "utils/env.sh", "utils/horovod.sh"):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, top / name)
        for name in ("python3", "python3.10"):
            self.tool(name, PYTHON)
        self.tool("sleep", "#!/bin/sh\nexec /bin/sleep 0.02\n")
        self.tool("nvcc", NO_NVCC)
        for name in ("g++", "make", "pyenv", "nvidia-smi"):
            self.tool(name, "#!/bin/sh\n")

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def call(self, **environment: str) -> tuple[str, str]:
        """Sources env.sh; returns what it says, with the environment it takes as the last line, and the notes."""
        notes = self.state / "notes"
        notes.write_text("")
        known = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MPI", "DEVICE", "PYTHON", "VENV")
        }
        env = {
            **known,
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "STATE": str(self.state),
            "XDG_CACHE_HOME": str(self.state / "cache"),
            **environment,
        }
        done = subprocess.run(
            ["sh", "-euc", '. utils/env.sh; echo "${VENV##*/}"'],
            cwd=self.top,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, notes.read_text()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone", tmp_path / "state")


def test_each_device_has_its_environment_and_the_other_is_left_alone(clone: Clone) -> None:
    said, notes = clone.call(DEVICE="gpu")
    assert said.endswith(".venv-gpu\n")
    assert "install tensorflow[and-cuda]==" in notes
    said, notes = clone.call()
    assert said.endswith(".venv\n")
    assert "DEVICE=gpu takes" in said
    assert "venv-gpu" not in notes
    for device, name in (("gpu", ".venv-gpu"), ("cpu", ".venv")):
        assert clone.call(DEVICE=device) == (f"{name}\n", "")
    clone.tool("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card'\n")
    assert clone.call() == (".venv-gpu\n", "")


def test_nvcc_that_comes_later_builds_nccl_which_then_stays(clone: Clone) -> None:
    said, notes = clone.call(DEVICE="gpu")
    assert "no nvcc on PATH" in said
    assert "compile plain\ninstall plain" in notes
    clone.tool("nvcc", NVCC.format("13.0.88"))
    _, notes = clone.call(DEVICE="gpu")
    assert "compile NCCL\ninstall NCCL" in notes
    clone.tool("nvcc", NO_NVCC)
    assert clone.call(DEVICE="gpu") == (".venv-gpu\n", "")
    clone.tool("nvcc", NVCC.format("12.9.1"))
    assert clone.call(DEVICE="gpu") == (".venv-gpu\n", "")


@pytest.mark.parametrize("how", ["fails", "loads-not"])
def test_nccl_that_cannot_be_built_is_said_not_kept_and_tried_again_with_another_nvcc(
    clone: Clone, how: str
) -> None:
    (clone.state / "nccl").write_text(how)
    clone.tool("nvcc", NVCC.format("13.0.88"))
    said, notes = clone.call(DEVICE="gpu")
    assert "could not be built with NCCL" in said
    assert notes.rstrip().endswith("install plain")
    assert not list((clone.state / "cache/extended-fov-segmentation").glob("*nccl*"))
    assert clone.call(DEVICE="gpu") == (".venv-gpu\n", "")
    (clone.state / "nccl").write_text("")
    clone.tool("nvcc", NVCC.format("12.9.1"))
    assert "install NCCL" in clone.call(DEVICE="gpu")[1]


def test_a_second_clone_takes_the_wheel_with_nccl_without_an_nvcc(clone: Clone, tmp_path: Path) -> None:
    clone.tool("nvcc", NVCC.format("13.0.88"))
    clone.call(DEVICE="gpu")
    shutil.rmtree(clone.top)
    second = Clone(tmp_path / "second", clone.state)  # its nvcc is none
    _, notes = second.call(DEVICE="gpu")
    assert "compile" not in notes
    assert notes.rstrip().endswith("install NCCL")


def test_a_wheel_of_the_cache_that_does_not_load_is_compiled_again(clone: Clone) -> None:
    clone.call(DEVICE="cpu")
    (wheel,) = (clone.state / "cache").glob("*/*/horovod-0.whl")
    wheel.write_text("")
    shutil.rmtree(clone.top / ".venv")
    assert "compile plain" in clone.call(DEVICE="cpu")[1]
    assert wheel.read_text() == "plain\n"


def test_another_python_makes_the_environment_anew_and_none_keeps_it(clone: Clone) -> None:
    clone.call()
    assert clone.call(PYTHON="python3") == (".venv\n", "")
    assert "venv " in clone.call(PYTHON="python3.10")[1]
    assert clone.call(PYTHON="python3.7") == (".venv\n", "")  # a node without it can use what is there
    requirements = clone.top / "requirements.txt"
    requirements.write_text(requirements.read_text() + "\n")
    said, notes = clone.call()
    assert "setting up" in said
    assert "venv " not in notes


def test_intel_and_mpich_are_one_environment(clone: Clone) -> None:
    assert clone.call(MPI="mpich")[0].endswith("env: ready\n.venv-mpich\n")
    assert clone.call(MPI="intel") == (".venv-mpich\n", "")


@pytest.mark.skipif(shutil.which("mpicxx", path="/usr/bin:/bin") is not None, reason="this system has an MPI")
def test_a_system_without_an_mpi_is_told_what_to_load(clone: Clone) -> None:
    with pytest.raises(
        AssertionError, match="MPI=system, but there is no mpicxx on PATH: load your cluster's MPI"
    ):
        clone.call(MPI="system")


def test_an_unknown_device_is_refused(clone: Clone) -> None:
    with pytest.raises(AssertionError, match="DEVICE=tpu is unknown, take cpu or gpu"):
        clone.call(DEVICE="tpu")


def test_who_waits_for_the_set_up_of_another_one_says_so(clone: Clone) -> None:
    (clone.top / ".venv.lock").write_text("process 7 on node2, job 12\n")
    with (clone.top / ".venv.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN))
        timer.start()
        said, _ = clone.call(SLURM_JOB_ID="13")
        timer.join()
    assert f"env: waits for the set-up of {clone.top}/.venv by process 7 on node2, job 12 (log: " in said
    assert (clone.top / ".venv.lock").read_text().endswith(f" on {platform.node()}, job 13\n")
    assert "env: waits" not in clone.call(DEVICE="gpu")[0]
