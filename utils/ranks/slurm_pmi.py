"""Gets MPICH's ranks through the start under `srun --mpi=pmi2`."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from utils.ranks.launcher import is_task_of_srun, launcher_mpi

M_PERTURB = -6  # of glibc's malloc.h


@contextlib.contextmanager
def short_addresses() -> Iterator[None]:
    """Let malloc give zeros within the block, where MPICH starts as a task of srun.

    MPICH 5.0.2 publishes the address of a rank with the rest of a buffer that it has not written. It shortens repeated
    bytes, but what a large program has freed before does not repeat, and Slurm 22.05 takes lines of 1024 bytes: "value
    not properly terminated in client request".
    """
    libc = ctypes.CDLL(None)
    applies = is_task_of_srun() and launcher_mpi() == "mpich" and hasattr(libc, "mallopt")
    if applies:
        libc.mallopt(M_PERTURB, 255)  # new memory is filled with the complement
    try:
        yield
    finally:
        if applies:
            libc.mallopt(M_PERTURB, 0)
