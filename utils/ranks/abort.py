"""Has the launcher end all ranks when one of them fails, where it does not do so by itself."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

from utils.ranks.launcher import is_task_of_srun

MPICH, OPEN_MPI = "libmpi.so.12", "libmpi.so.40"  # the first also of Intel MPI, whose ABI is MPICH's
PATIENCE = 10.0  # seconds; MPI does not promise that MPI_Abort ends while another thread waits in MPI


def abort_all(code: int) -> None:
    """End all ranks by MPI_Abort, and the launcher with this exit code, if this process is a rank whose launcher waits.

    MPICH's and Intel MPI's mpiexec.hydra, and srun, wait for the ranks of other hosts when a rank ends, with whatever
    exit code, and those wait for the rank. mpiexec.hydra also waits for ranks that are stopped or whose host has
    vanished. Open MPI's mpirun ends all ranks by itself.
    """
    mpi, world = _mpi_of_this_process()
    if mpi is None:
        return
    begun, over = ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Initialized(ctypes.byref(begun))
    mpi.MPI_Finalized(ctypes.byref(over))
    if not begun.value or over.value:
        return
    # MPI would say that it was called, beside what this rank has said already.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    thread = threading.Thread(target=mpi.MPI_Abort, args=(world, code), daemon=True)
    thread.start()
    thread.join(PATIENCE)


def _mpi_of_this_process() -> tuple[Any, Any]:
    """Return the MPI that Horovod has loaded, and its MPI_COMM_WORLD; None if there is none, or no need."""
    for name in (MPICH, *([OPEN_MPI] if is_task_of_srun() else [])):
        try:
            mpi = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        except OSError:
            continue
        if name == MPICH:
            return mpi, ctypes.c_int(0x44000000)
        return mpi, ctypes.byref(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_world"))
    return None, None
