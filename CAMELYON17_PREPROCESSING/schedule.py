"""Divides slides and their patches over worker processes, and writes a slide's record when its patches are there."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.cut import Cut, UnexpectedError, cut, draw, guarded, plan, start_worker
from CAMELYON17_PREPROCESSING.grid import Place
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers.reader import BadSlideError
from utils.failures import keep
from utils.interrupt import interrupt_deferred

CHUNK_PIXELS = 8 << 20  # pixels of the patches of one task


@dataclass
class _Job:
    """A slide that is being cut."""

    source: SourceSlide
    places: int = 0
    waiting: set[Future[Any]] = field(default_factory=set)
    cut: Cut = field(default_factory=Cut)
    left_out: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class PatchOutcome:
    """The work that was done, and what was left out."""

    patches: dict[str, int] = field(default_factory=lambda: dict.fromkeys(store.KINDS, 0))
    discarded: dict[str, int] = field(default_factory=dict)  # reason → patches
    bad: dict[str, str] = field(default_factory=dict)  # slide → reason
    left_out: list[str] = field(default_factory=list)  # a line for each part of a label that is left out


def process(
    sources: Sequence[SourceSlide],
    settings: PatchSettings,
    folders: Folders,
    processes: int,
    advance: Callable[[float, int], None],
) -> PatchOutcome:
    """Cut all slides. Those that cannot be used are left out and have no patches.

    advance(slides, patches) is called with the share of a slide and the number of patches that were done.
    OutputError: a file cannot be written. BrokenProcessPool: a worker was killed.
    """
    return _Schedule(settings, folders, processes, advance).run(sources)


class _Schedule:
    def __init__(
        self, settings: PatchSettings, folders: Folders, processes: int, advance: Callable[[float, int], None]
    ) -> None:
        self.settings, self.folders, self.processes, self.advance = settings, folders, processes, advance
        self.outcome = PatchOutcome()
        self.jobs: dict[Future[Any], tuple[_Job, str]] = {}  # with the step: plan, cut or draw

    def run(self, sources: Sequence[SourceSlide]) -> PatchOutcome:
        pending = deque(sources)
        active: list[_Job] = []
        # New processes, not forks: libvips and OpenCV have threads.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(self.processes, context, start_worker, (os.getpid(),))
        try:
            while pending or active:
                # One slide more than processes, so that there is work while one is finished.
                while pending and len(active) <= self.processes:
                    job = _Job(pending.popleft())
                    active.append(job)
                    self._submit(job, "plan", plan, job.source, self.settings)
                for future in wait(self.jobs, return_when=FIRST_COMPLETED).done:
                    job, step = self.jobs.pop(future)
                    job.waiting.discard(future)
                    self._take(job, step, future)
                    if not job.waiting and (job.error or step == "draw" or self._finish(job)):
                        active.remove(job)
                        self._close(job)
        finally:
            self.pool.shutdown(cancel_futures=True)
        return self.outcome

    def _submit(self, job: _Job, step: str, function: Callable[..., Any], *arguments: Any) -> None:
        with interrupt_deferred():  # this may start a worker
            future = self.pool.submit(guarded, function, *arguments)
        job.waiting.add(future)
        self.jobs[future] = (job, step)

    def _take(self, job: _Job, step: str, future: Future[Any]) -> None:
        if future.cancelled():
            return
        try:
            result = future.result()
        except (BadSlideError, UnexpectedError) as error:
            job.error = job.error or _reason_of(error, f"{step} of {job.source.pair.slide}")
            for other in job.waiting:
                other.cancel()
            return
        if step == "plan":
            found, job.left_out = result
            job.places = len(found)
            store.begin(self.folders, job.source, self.settings)
            for chunk in self._chunks(found):
                self._submit(job, "cut", cut, job.source, self.settings, self.folders, chunk)
        elif step == "cut":
            job.cut.add(result)
            self.advance(result.places / job.places, result.patches)

    def _chunks(self, places: list[Place]) -> list[list[Place]]:
        """Divide places into tasks; one task where --max_patches counts over the whole slide."""
        size = max(1, CHUNK_PIXELS // self.settings.patch_size**2)
        if self.settings.max_patches is not None:
            size = max(1, len(places))
        return [places[i : i + size] for i in range(0, len(places), size)]

    def _finish(self, job: _Job) -> bool:
        """Draw the picture once all patches are there. Return whether nothing is left to do."""
        if not self.settings.save_png:
            return True
        self._submit(job, "draw", draw, job.source, self.settings, self.folders, job.cut.rows)
        return False

    def _close(self, job: _Job) -> None:
        self.outcome.left_out += job.left_out
        if not job.places or job.error:
            self.advance(1.0, 0)
        if job.error:
            self.outcome.bad[job.source.name] = job.error
            store.remove_slides(self.folders, [job.source.name])
            return
        for rows in job.cut.rows.values():
            rows.sort(key=lambda row: (row.y, row.x))
        discarded = dict(sorted(job.cut.discarded.items()))
        store.write_record(self.folders, job.source, job.cut.rows, discarded)
        for kind, rows in job.cut.rows.items():
            self.outcome.patches[kind] += len(rows)
        for reason, count in discarded.items():
            self.outcome.discarded[reason] = self.outcome.discarded.get(reason, 0) + count


def _reason_of(error: BadSlideError | UnexpectedError, what: str) -> str:
    if isinstance(error, BadSlideError):
        return error.reason
    return keep(error.kind, error.message, what, error.trace)
