"""Sets what TensorFlow reads when it is imported, for train.py, predict.py and the benchmarks alike."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia")  # exists where an NVIDIA driver is loaded
# What TensorFlow's libraries write while they load, before they have read TF_CPP_MIN_LOG_LEVEL; and what those for
# GPUs write where there is none that may be used.
LOADING = (
    "^(WARNING: All log messages before absl::InitializeLog|I[0-9]{4} |E[0-9]{4} .* failed call to cuInit)"
)
# What it writes once, as an error, at the first float16 on a CPU without AVX-512, and then it computes with Eigen.
NO_FLOAT16 = "^E[0-9]{4} .* oneDNN supports DT_HALF only"
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h


def configure_environment(options: argparse.Namespace) -> None:
    """Set what TensorFlow, Horovod and MPI read when they are imported."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # Horovod's optimizer does not work with Keras 3
    # TensorFlow leaves oneDNN off where the CPU has no AVX-512 VNNI; it is 1.1 to 1.5 times as fast there too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if not options.verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        for name in ("tensorflow", "absl"):  # absl prints a line for each swish of an exported model
            logging.getLogger(name).setLevel(logging.ERROR)
    shares = getattr(options, "ranks_per_patch", 1) > 1  # predict.py has no such options
    if shares:  # thousands of exchanges in a step: what is not in this cache is negotiated each time
        os.environ.setdefault("HOROVOD_CACHE_CAPACITY", "16384")
    # By default Horovod's ranks negotiate every millisecond and MPI waits by spinning, which costs a third of a core.
    # A step takes so long on CPUs that 20 ms do not matter, unless each batch norm or layer waits for other ranks.
    if options.no_cuda or not NVIDIA.exists():
        waiting = getattr(options, "sync_batch_norm", False) or shares
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "1" if waiting else "20")
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # While rank 0 exports or writes, the others wait: no stall, for as long as that may take.
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "600")
    if options.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def import_tensorflow(verbose: bool) -> None:
    """Import TensorFlow, unless `verbose` without what its libraries have to say about themselves."""
    if verbose or "tensorflow" in sys.modules:
        importlib.import_module("tensorflow")
        return
    with lines_left_out(LOADING):
        tensorflow = importlib.import_module("tensorflow")
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1" or not NVIDIA.exists():
            tensorflow.config.list_physical_devices()  # what it says is said here and now


@contextlib.contextmanager
def lines_left_out(pattern: str) -> Iterator[None]:
    """Leave lines that match the extended regular expression out of what is written to stderr within.

    Libraries write to the file descriptor, so it leads through a process that leaves those lines out. All others
    appear, also the last words of a library that crashes.
    """
    command = ["grep", "--line-buffered", "-v", "-E", pattern]
    stderr = os.dup(2)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True) as others:
        assert others.stdin
        os.dup2(others.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def limit_malloc(recompute: str) -> None:
    """Tell glibc, before TensorFlow starts, to keep less of the memory that is freed.

    glibc keeps freed memory apart for each thread, and the next tensors do not fit into it: one place for all threads
    saves 5 to 10 % of the peak. With "full", large blocks go back to the system at once, which saves up to a third of
    the peak, but a third of the time is then spent on new pages.
    """
    libc = ctypes.CDLL(None)
    if recompute != "none" and hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)
        if recompute == "full":
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 22)
