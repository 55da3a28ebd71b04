"""What the doctor and the start of train.py say of an environment that does not fit."""

from __future__ import annotations

import pytest

from tests.helpers.launch import run_python
from utils import doctor
from utils.ranks.launcher import launcher_mpi

GOOD = {"horovod": "MPI, GLOO", "mpi": None, "gpus": 0, "vips": "8", "openslide": "4"}
VERSIONS = {"tf-keras": "2.21.0"}


def test_this_environment_is_well() -> None:
    done = run_python(["-m", "utils.doctor"])
    assert done.returncode == 0, done.stdout
    assert "all is well" in done.stdout
    assert "tf-keras             2.21.0" in done.stdout


@pytest.mark.parametrize(
    ("found", "has_nvidia", "said"),
    [
        ({"crash": "exit code -11"}, False, "crash when loaded"),
        ({**GOOD, "vips": "error OSError: no libvips"}, False, "vips does not load (OSError: no libvips)"),
        ({**GOOD, "horovod": "GLOO"}, False, "without MPI"),
        (GOOD, True, "NVIDIA GPU that TensorFlow does not see"),
        ({**GOOD, "gpus": 2}, True, "without NCCL"),
    ],
)
def test_each_problem_is_a_line(found: dict, has_nvidia: bool, said: str) -> None:
    lines = list(doctor.problems(found, VERSIONS, has_nvidia))
    assert len(lines) == 1
    assert said in lines[0]


def test_nothing_wrong_is_no_line() -> None:
    assert list(doctor.problems(GOOD, VERSIONS, False)) == []


def test_the_launcher_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_CONTROLLER"):
        monkeypatch.delenv(name, raising=False)
    assert launcher_mpi() is None
    monkeypatch.setenv("PMI_SIZE", "2")
    assert launcher_mpi() == "mpich"
    monkeypatch.setenv("HOROVOD_CONTROLLER", "gloo")
    assert launcher_mpi() is None


def test_the_other_mpis_launcher_is_refused_before_mpi_starts(tmp_path) -> None:
    words = ["train.py", "--slide_path", tmp_path, "--label_path", tmp_path]
    done = run_python(words, PMI_RANK="0", PMI_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert "Horovod" in done.stderr
    assert "was built for Open MPI's mpirun" in done.stderr
