"""The program that started this process (mpirun, mpiexec.hydra, srun, horovodrun), as its environment tells of it."""

from __future__ import annotations

import os
import sys

import psutil

COMMANDS = {"openmpi": "mpirun", "mpich": "mpiexec.hydra"}
LAUNCHERS = {"openmpi": "Open MPI's mpirun", "mpich": "MPICH's or Intel MPI's mpiexec.hydra"}


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


def lonely_tasks() -> int:
    """Return how many tasks srun started none of which knows of the others; 1 where there is no such thing.

    A batch script and what it starts by itself are no tasks of srun: they have no number of a step.
    """
    if launcher_rank()[1] > 1 or not os.environ.get("SLURM_STEP_ID", "").isdecimal():
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


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
