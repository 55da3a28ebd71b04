"""A rank that fails has the launcher end the others by MPI_Abort, where the launcher would wait for them for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.launch import run_python

# Stands for an MPI: it writes down with which code the communicator was aborted, and says so as MPICH does.
MPI = """
#include <stdio.h>
#include <unistd.h>
char ompi_mpi_comm_world[8] = "world";
int MPI_Initialized(int *flag) { *flag = BEGUN; return 0; }
int MPI_Finalized(int *flag) { *flag = OVER; return 0; }
int MPI_Abort(WORLD world, int code) {
    printf("%d in %d\\n", code, IS_WORLD);
    fflush(stdout);
    fprintf(stderr, "application called MPI_Abort\\n");
    WAITS;
    return 0;
}
"""
KINDS = {
    "libmpi.so.12": ["-DWORLD=int", "-DIS_WORLD=(world == 0x44000000)"],
    "libmpi.so.40": ["-DWORLD=void *", "-DIS_WORLD=(world == ompi_mpi_comm_world)"],
}
FAIL = "from utils.ranks.killed_rank import end_at_once; end_at_once('on purpose\\n', 76)"
UNDER_SRUN = "import os; del os.environ['OMPI_COMM_WORLD_RANK']; os.environ['SLURM_STEP_ID'] = '0'; "
IMPATIENT = "from utils.ranks import abort; abort.PATIENCE = 1; "


def fail(folder: Path, name: str, before: str = "", begun: int = 1, over: int = 0, waits: str = ""):
    """Run a rank that fails, with this library loaded. Return its exit code, what was aborted, and what was said."""
    (folder / "mpi.c").write_text(MPI)
    library = folder / "mpi.so"  # found by its name inside of the file, as the loader does
    defined = [f"-DBEGUN={begun}", f"-DOVER={over}", f"-DWAITS={waits}", *KINDS[name]]
    shared = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(library), str(folder / "mpi.c")]
    subprocess.run(["gcc", *defined, *shared], check=True)
    code = f"import ctypes; ctypes.CDLL({str(library)!r}); {before}{FAIL}"
    done = run_python(["-c", code], timeout=60, OMPI_COMM_WORLD_RANK="0")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("before", "waits"), [("", ""), (IMPATIENT, "pause()")])
def test_all_ranks_of_mpich_end_with_the_code_of_the_one_that_fails(tmp_path, before, waits):
    """Also where MPI_Abort itself waits for ever."""
    ended = fail(tmp_path, "libmpi.so.12", before, waits=waits)
    assert ended == (76, "76 in 1\n", "[rank 0] failed: on purpose\n")


@pytest.mark.parametrize(("before", "aborted"), [("", ""), (UNDER_SRUN, "76 in 1\n")])
def test_those_of_open_mpi_end_so_under_srun_alone(tmp_path, before, aborted):
    assert fail(tmp_path, "libmpi.so.40", before)[:2] == (76, aborted)


@pytest.mark.parametrize(("begun", "over"), [(0, 0), (1, 1)])
def test_nothing_is_aborted_before_or_after_mpi(tmp_path, begun, over):
    assert fail(tmp_path, "libmpi.so.12", begun=begun, over=over)[:2] == (76, "")
