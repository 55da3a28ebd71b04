"""A worker process as its consumer sees it: started with a ring and a control socket, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Pipe
from pathlib import Path

from samplers.workers import ring
from samplers.workers.ring import IGNORED_SIGNALS, Setup


class WorkerProcess:
    """A started worker process. Raises OSError if the system does not start it or provides no memory."""

    def __init__(self, number: int, setup: Setup) -> None:
        self.number = number
        root = str(Path(__file__).resolve().parents[2])
        ring_fd = ring.create(setup.batch_size, setup.img_size, setup.slots, setup.height)
        self.control, theirs = Pipe()
        # Blocked signals stay blocked over fork and exec, so no signal of the batch system reaches the worker before
        # the worker ignores it. Signals for this process arrive when they are unblocked below.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            self.slots = ring.views(ring_fd, setup.batch_size, setup.img_size, setup.slots, setup.height)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "samplers.workers.worker", str(theirs.fileno()), str(ring_fd)],
                pass_fds=(theirs.fileno(), ring_fd),
                stdin=subprocess.DEVNULL,
                # `-m` searches the working directory first, so no module of the user can hide ours.
                cwd=root,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
                    # The cores belong to TensorFlow: each worker has one thread for libvips and one for OpenBLAS.
                    "VIPS_CONCURRENCY": "1",
                    "OMP_NUM_THREADS": "1",
                    # Keep the memory of a patch's buffers (some MB) instead of returning it to the system each
                    # time: page faults took a tenth of the processor time (glibc only).
                    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
                    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
                },
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
            os.close(ring_fd)

    def death(self) -> str:
        """Say how the process ended."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return f"sampler worker {self.number} closed its socket but is still running"
        how = f"with exit code {code}"
        if code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        if code == -signal.SIGKILL:
            how += ": it was killed, or the memory was used up"
        return f"sampler worker {self.number} (process {self.process.pid}) ended {how}"


def stop(workers: list[WorkerProcess]) -> None:
    """End the workers; kill those that have not ended after two seconds."""
    for worker in workers:
        worker.control.close()  # the worker notices it after its current batch
    deadline = time.monotonic() + 2
    for worker in workers:
        try:
            worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    workers.clear()
