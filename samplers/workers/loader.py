"""Loads batches in the order of their index, from worker processes (`samplers.workers.worker`) or in the calling one.

Worker b mod N makes batch b, which is a function of its index, so neither the timing nor N changes the batches.
Workers run ahead as far as their rings in shared memory allow (`samplers.workers.ring`).
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import wait

import numpy as np

from samplers.agreement import NO_RULING, Filled, Ruling, Sampler, agreed, ruling_after
from samplers.patches import Batch, SamplerError, too_many_bad_slides
from samplers.workers import ring
from samplers.workers.process import WorkerProcess, stop
from samplers.workers.ring import Setup

MAX_RESTARTS = 10  # of the workers of a loader: what kills them again and again is not mended by one more

log = logging.getLogger(__name__)

# A slide that could not be read in batch b is dropped from batch b + DROP_AFTER on. That is later than any batch that
# one of 50 workers has begun when it is told (each is at most ring.MAX_SLOTS batches ahead), so the timing does not
# change the batches. Until then a batch that meets the damaged place of the slide draws again.
DROP_AFTER = 256


class Loader:
    """Iterates over batches, and ends its workers at the end of a `with` block or when it is garbage collected.

    The arrays of a batch are views of shared memory, valid until the next batch is taken: copy them before that.
    With `count` (validation), each `iter()` begins with batch 0 and ends after `count` batches. Without it (training),
    iteration continues endlessly at `next_index`, at first `start`. There can be one iteration at a time. `dropped` is
    the `Loader.dropped` of the run that is resumed. processes=0 draws in the calling process.

    Where ranks share each patch, `height` is that of this rank's strips, and `gather` returns what all of them give to
    it, by member of the group: each batch is then collective in the group, which agrees on it (`samplers.agreement`).

    A worker that died is noticed at once, while waiting or with the next batch, and started again at the first of its
    batches that was not taken, with a warning. Between two validations `restart_dead_workers` looks for it.

    Raises SamplerError if workers died more than MAX_RESTARTS times, if one raised an error (its traceback is in the
    message), or if more than `bad_slides_allowed` slides could not be read.
    """

    def __init__(
        self,
        make_sampler: Callable[[], Sampler],
        batch_size: int,
        img_size: int,
        processes: int,
        start: int = 0,
        count: int | None = None,
        bad_slides_allowed: int = 1,
        dropped: Mapping[str, tuple[str, int]] | None = None,
        height: int | None = None,
        gather: Callable[[Filled], list[Filled]] | None = None,
    ) -> None:
        self.next_index = start
        self.count = count
        self.wait_seconds = 0.0  # for which the consumer has waited for batches
        self.dropped: dict[
            str, tuple[str, int]
        ] = {}  # bad slide → (reason, first batch that does not draw from it)
        self._allowed = bad_slides_allowed
        self._batch_size, self._img_size, self._height = batch_size, img_size, height or img_size
        self._gather = gather
        self._make_sampler = make_sampler
        self._sampler: Sampler | None = None  # only with processes=0
        self._workers: list[WorkerProcess] = []
        self._restarts = 0
        self._closed = False
        self._finalizer = weakref.finalize(self, stop, self._workers)
        self._epoch = (
            0  # number of the iteration; batches that workers still send for an earlier one are ignored
        )
        # (worker, epoch, slot) of the batch taken last
        self._held: tuple[WorkerProcess, int, int] | None = None
        self._ready: dict[int, tuple[int, Filled]] = {}
        self._here: tuple[np.ndarray, np.ndarray]  # the arrays of the batch taken last, only with processes=0
        if processes:
            self._spawn(processes)
        for slide, (reason, first) in (dropped or {}).items():
            self._drop(slide, reason, first)
        if processes and count is None:
            self._start()  # the first batches are drawn while the caller builds its model

    def _spawn(self, processes: int) -> None:
        slots = ring.slot_count(self._batch_size, self._img_size, processes, self._height)
        self._setup = Setup(
            self._make_sampler, self._batch_size, self._img_size, self._height, slots, processes
        )
        for number in range(processes):
            self._workers.append(self._new_worker(number))
        for worker in list(self._workers):
            self._send(worker, self._setup)

    def _new_worker(self, number: int) -> WorkerProcess:
        try:
            return WorkerProcess(number, self._setup)
        except OSError as error:
            self.close()
            raise SamplerError(f"a sampler worker could not be started: {error}") from error

    def _start(self) -> None:
        """Let the workers begin at `next_index`, with every slot of their rings free."""
        self._epoch += 1
        self._ready.clear()
        for worker in list(self._workers):
            self._send_start(worker)

    def _send_start(self, worker: WorkerProcess) -> None:
        first = self.next_index + (worker.number - self.next_index) % len(self._workers)
        self._send(worker, ("start", self._epoch, first, self.count))

    def restart_dead_workers(self) -> None:
        """Start the workers again that have died. Raises as the iteration does, which does so by itself."""
        for control in wait([worker.control for worker in self._workers], 0):
            self._receive(control)

    def _restart(self, worker: WorkerProcess, error: Exception) -> None:
        """Put a new process in the place of a worker that died, which makes its batches that were not taken anew."""
        death = worker.death()
        if self._restarts == MAX_RESTARTS:
            self.close()
            raise SamplerError(f"{death}, after workers were started again {MAX_RESTARTS} times") from error
        self._restarts += 1
        log.warning("%s: it is started again", death)
        stop([worker])
        count = len(self._workers)
        new = self._workers[worker.number] = self._new_worker(worker.number)
        # What it had sent lies in its ring, of which the new one knows nothing.
        self._ready = {i: ready for i, ready in self._ready.items() if i % count != worker.number}
        self._send(new, self._setup)
        for slide, (_, first) in self.dropped.items():
            self._send(new, ("drop", slide, first))
        if self._epoch:
            self._send_start(new)

    def __iter__(self) -> Iterator[Batch]:
        if self.count is not None:
            self.next_index = 0
            if self._workers:
                self._start()
        epoch = self._epoch
        while self.count is None or self.next_index < self.count:
            if epoch != self._epoch:
                raise RuntimeError("another iteration over this loader has begun")
            index = self.next_index
            self._give_back()
            began = time.perf_counter()
            slot, filled = self._agree(index, *self._take(index))
            self.wait_seconds += time.perf_counter() - began
            if self._workers:
                worker = self._worker_of(index)
                self._held, (images, labels) = (worker, epoch, slot), worker.slots[slot]
            else:
                images, labels = self._here
            # From here on a worker that is started again does not make this batch.
            self.next_index = index + 1
            self._count_bad(index, filled.failed)
            if filled.patches:
                count = len(filled.patches)
                yield Batch(index, images[:count], labels[:count], list(filled.patches))

    def _give_back(self) -> None:
        """Allow the worker to overwrite the slot of the batch taken last."""
        if self._held is not None:
            worker, epoch, slot = self._held
            self._send(worker, ("free", epoch, slot))
        self._held = None

    def _take(self, index: int) -> tuple[int, Filled]:
        """Wait for batch `index`. Return its slot in the ring and what it was filled with."""
        if self._closed:
            raise SamplerError("the loader is closed")
        if not self._workers:
            self._here = (
                np.empty((self._batch_size, self._height, self._img_size, 3), np.uint8),
                np.empty((self._batch_size, self._height, self._img_size), np.uint8),
            )
            return 0, self._fill_here(index)
        while True:
            # If the batch is there, this does not wait but still notices a dead worker.
            for control in wait([w.control for w in self._workers], 0 if index in self._ready else None):
                self._receive(control)
            if index in self._ready:
                return self._ready.pop(index)

    def _agree(self, index: int, slot: int, filled: Filled) -> tuple[int, Filled]:
        """Collective in the group: let the batch be filled anew until all ranks of the group agree on it."""
        if self._gather is None:
            return slot, filled
        ruling: Ruling | None = NO_RULING
        while ruling is not None:
            reports = self._gather(filled._replace(patches=[]))
            ruling = ruling_after(reports, ruling)
            if ruling is not None and self._workers:
                slot, filled = self._take_again(index, slot, ruling)
            elif ruling is not None:
                filled = self._fill_here(index, ruling)
        return slot, agreed(reports)

    def _take_again(self, index: int, slot: int, ruling: Ruling) -> tuple[int, Filled]:
        """Let the worker fill batch `index`, which was taken from this slot, with a ruling. Return as `_take` does."""
        while True:
            worker = self._worker_of(index)
            self._send(worker, ("again", self._epoch, index, slot, ruling))
            slot, filled = self._take(index)
            if worker is self._worker_of(index):
                return slot, filled  # else it died, and the new one knew nothing of the ruling

    def _worker_of(self, index: int) -> WorkerProcess:
        return self._workers[index % len(self._workers)]

    def _fill_here(self, index: int, ruling: Ruling = NO_RULING) -> Filled:
        if self._sampler is None:
            self._sampler = self._make_sampler()
            for slide, (_, first) in self.dropped.items():
                self._sampler.drop(slide, first)
        return self._sampler.fill(index, *self._here, ruling)

    def _receive(self, control: object) -> None:
        worker = next(w for w in self._workers if w.control is control)
        try:
            kind, *arguments = worker.control.recv()
        except (EOFError, OSError) as error:
            self._restart(worker, error)
            return
        if kind == "error":
            self.close()
            raise SamplerError(f"sampler worker {worker.number} failed:\n{arguments[0]}")
        epoch, index, slot, filled = arguments
        if epoch == self._epoch:
            self._ready[index] = (slot, filled)

    def _send(self, worker: WorkerProcess, message: object) -> None:
        """Send a message. If the worker has died meanwhile, the one in its place begins with all that it must know."""
        if worker not in self._workers:
            return
        try:
            worker.control.send(message)
        except OSError as error:
            # The worker may have sent the reason before it ended.
            while worker in self._workers and worker.control.poll():
                self._receive(worker.control)
            if worker in self._workers:
                self._restart(worker, error)

    def _count_bad(self, index: int, failed: dict[str, str]) -> None:
        for slide, reason in failed.items():
            if slide not in self.dropped:
                log.warning("bad slide, left out from now on: %s: %s", slide, reason)
                self._drop(slide, reason, index + DROP_AFTER)
        if len(self.dropped) > self._allowed:
            self.close()
            raise too_many_bad_slides(
                {slide: reason for slide, (reason, _) in self.dropped.items()}, self._allowed
            )

    def _drop(self, slide: str, reason: str, first: int) -> None:
        self.dropped[slide] = (reason, first)
        if self._sampler is not None:
            self._sampler.drop(slide, first)
        for worker in list(self._workers):
            self._send(worker, ("drop", slide, first))

    @property
    def worker_pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the workers. The arrays of batches that were taken stay readable."""
        self._closed = True
        self._held = None  # its worker's memory
        self._finalizer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
