"""The loader: order, restart, shared memory, and every way in which a worker or its consumer can end."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import psutil
import pytest

from samplers import Loader, SamplerError
from samplers.workers import ring
from samplers.workers.loader import DROP_AFTER
from tests.helpers.trivial_samplers import Counting, Deadly, Failing, Numbers, Unreadable, Unstartable

ROOT = Path(__file__).resolve().parents[3]


def taken(loader: Loader, count: int) -> list[tuple]:
    """(index, images' value, labels' value, slide) of batches, with checks of their form."""
    result = []
    for batch in islice(loader, count):
        assert batch.images.shape == (2, 8, 8, 3)
        assert batch.labels.shape == (2, 8, 8)
        assert batch.images.min() == batch.images.max()
        result.append((batch.index, batch.images[0, 0, 0, 0], batch.labels[0, 0, 0], batch.patches[0].slide))
    return result


@pytest.mark.parametrize("start", [0, 5])
def test_order_is_the_same_for_every_number_of_processes(start: int) -> None:
    expected = [(i, i, i % 7, f"slide{i}") for i in range(start, start + 20)]
    for processes in (0, 1, 3):
        with Loader(partial(Numbers, slow=True), 2, 8, processes, start=start) as loader:
            assert taken(loader, 20) == expected
            assert loader.next_index == start + 20


def test_validation_begins_anew_even_if_left_midway() -> None:
    for processes in (0, 2):
        with Loader(partial(Numbers, last=6), 2, 8, processes, count=7) as loader:
            assert [batch.index for batch in islice(loader, 3)] == [0, 1, 2]
            for _ in range(2):
                sizes = [(batch.index, len(batch.images), len(batch.labels)) for batch in loader]
                assert sizes == [(i, 2, 2) for i in range(6)] + [(6, 1, 1)]


def test_a_training_iteration_goes_on_where_the_last_one_ended() -> None:
    with Loader(Numbers, 2, 8, 1) as loader:
        assert [t[0] for t in taken(loader, 7) + taken(loader, 7)] == list(range(14))


def test_nothing_of_an_iteration_that_was_left_comes_in_the_next() -> None:
    with Loader(Counting, 2, 8, 1, count=7) as loader:
        next(iter(loader))
        time.sleep(0.2)  # the worker has filled its ring
        assert [batch.patches[0].x_l0 for batch in loader] == list(range(ring.MAX_SLOTS, ring.MAX_SLOTS + 7))


def test_two_iterations_at_once_are_refused() -> None:
    with Loader(Numbers, 2, 8, 1, count=9) as loader:
        first = iter(loader)
        next(first)
        batch = next(iter(loader))
        with pytest.raises(RuntimeError, match="another iteration"):
            next(first)
        time.sleep(0.2)
        assert (batch.images == 0).all()  # still, though its iterator is gone


def test_a_batch_stays_until_the_next_is_taken() -> None:
    with Loader(Numbers, 2, 8, 1) as loader:
        batches = iter(loader)
        for index in range(12):
            batch = next(batches)
            time.sleep(0.01)  # the worker is ahead by now
            assert (batch.images == index).all()


def test_waiting_is_measured() -> None:
    with Loader(Numbers, 2, 8, 1) as loader:
        taken(loader, 1)
        assert 0.05 < loader.wait_seconds < 60  # the start of the worker
        before = loader.wait_seconds
        time.sleep(0.2)
        taken(loader, 1)
        assert loader.wait_seconds - before < 0.1


def test_an_exception_in_a_worker_travels_with_its_traceback() -> None:
    with Loader(Failing, 2, 8, 2) as loader:
        with pytest.raises(SamplerError, match=r"(?s)Traceback.*trivial_samplers.*ZeroDivisionError: a bug"):
            taken(loader, 9)
        with pytest.raises(SamplerError, match="closed"):
            taken(loader, 1)


def test_a_sampler_that_cannot_be_made_is_an_error() -> None:
    with Loader(Unstartable, 2, 8, 1) as loader, pytest.raises(SamplerError, match="OSError: no licence"):
        taken(loader, 1)


def kill(loader: Loader, victim: int) -> int:
    """Kill a worker as the kernel does when memory is used up. Return its process id."""
    pid = loader.worker_pids[victim]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    return pid


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_started_again_and_the_batches_are_the_same(
    victim: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [(i, i, i % 7, f"slide{i}") for i in range(48)]
    found: list[tuple] = []
    with Loader(Numbers, 2, 8, 2) as loader:
        for _ in range(3):  # as they wait with full rings, of which one batch is held
            found += taken(loader, 11)  # more than the rings hold, so that the last death is noticed
            pid = kill(loader, victim)
        found += taken(loader, 3)
        batch = next(iter(loader))
        kill(loader, 0)
        assert (batch.images == 36).all()  # its memory stays until the next one is taken
        found += [expected[36], *taken(loader, 11)]
        assert not psutil.pid_exists(pid)
    assert found == expected
    reasons = [
        rf"sampler worker {v} .*by signal 9 \(SIGKILL\).*: it is started again" for v in (victim,) * 3 + (0,)
    ]
    assert len(caplog.messages) == 4
    assert all(re.search(reason, line) for reason, line in zip(reasons, caplog.messages))


def test_a_worker_that_is_started_again_knows_the_dropped_slides() -> None:
    with Loader(Unreadable, 2, 8, 1, bad_slides_allowed=3) as loader:
        taken(loader, 5)
        kill(loader, 0)
        dropped = [batch.patches[0].y_l0 for batch in islice(loader, DROP_AFTER)]
    assert dropped == [0] * (DROP_AFTER - 5) + [1, 2, 3, 3, 3]


def test_a_worker_of_the_validation_is_started_again_between_two_of_them() -> None:
    with Loader(partial(Numbers, last=6), 2, 8, 2, count=7) as loader:
        for _ in range(2):  # before the first one, and after it
            victim = kill(loader, 0)
            loader.restart_dead_workers()
            assert victim not in loader.worker_pids
            assert [len(batch.images) for batch in loader] == [2] * 6 + [1]
        kill(loader, 1)
        assert [len(batch.images) for batch in loader] == [2] * 6 + [1]  # noticed with the validation


def test_workers_that_die_again_and_again_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samplers.workers.loader.MAX_RESTARTS", 2)
    with Loader(Deadly, 2, 8, 2) as loader:
        with pytest.raises(SamplerError, match=r"SIGSEGV.*, after .* again 2 times"):
            taken(loader, 9)
        assert loader.worker_pids == []


def test_signals_to_the_process_group_do_not_end_workers() -> None:
    with Loader(Numbers, 2, 8, 2) as loader:
        for _ in range(20):  # from before Python has begun in the worker
            for pid in loader.worker_pids:
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                    os.kill(pid, signum)
            time.sleep(0.02)
        assert len(taken(loader, 20)) == 20


def test_close_and_collection_end_the_workers() -> None:
    loader = Loader(Numbers, 2, 8, 1)
    pids = loader.worker_pids
    loader.close()
    other = Loader(Numbers, 2, 8, 1)
    pids += other.worker_pids
    del other
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_end_after_a_killed_consumer_and_run_from_any_folder(tmp_path: Path) -> None:
    work, clone = tmp_path / "my work", tmp_path / "a clone"
    (work / "samplers").mkdir(parents=True)
    (work / "samplers" / "__init__.py").write_text("raise ImportError('not ours')")
    for room in ("samplers", "utils"):
        shutil.copytree(ROOT / room, clone / room)
    shutil.copytree(ROOT / "tests", clone / "tests", ignore=shutil.ignore_patterns("test_*"))
    (clone / "train.py").write_text(
        "import os, signal; from samplers import Loader; from tests.helpers.trivial_samplers import Numbers\n"
        "loader = Loader(Numbers, 2, 8, 2); batch = next(iter(loader)); assert batch.index == 0\n"
        "print(*loader.worker_pids, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, str(clone / "train.py")]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_bad_slides_are_counted_and_dropped_from_the_same_batch_on(
    processes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Loader(Unreadable, 2, 8, processes, bad_slides_allowed=3) as loader:
        dropped = [batch.patches[0].y_l0 for batch in islice(loader, DROP_AFTER + 5)]
        assert caplog.messages[0].startswith("bad slide, left out from now on: ")
        assert {slide: reason for slide, (reason, _) in loader.dropped.items()} == {
            f"bad{i}": "torn" for i in range(3)
        }
    assert dropped == [0] * DROP_AFTER + [1, 2, 3, 3, 3]


def test_too_many_bad_slides_end_the_run() -> None:
    message = r"(?s)3 slides .* 2 are allowed.*bad0: torn.*bad2: torn"
    with Loader(Unreadable, 2, 8, 1, bad_slides_allowed=2) as loader:
        with pytest.raises(SamplerError, match=message):
            taken(loader, 9)
        assert loader.worker_pids == []


def test_the_ring_is_bounded_in_bytes_and_has_two_batches_at_least() -> None:
    assert ring.slot_count(2, 256, 1) == ring.MAX_SLOTS
    assert ring.slot_count(8, 4096, 1) == 2  # 512 MiB a batch
    assert ring.slot_count(2, 4096, 3) == 2
    for batch_size, img_size, processes in ((2, 1024, 1), (2, 4096, 2), (1, 8192, 1)):
        slots = ring.slot_count(batch_size, img_size, processes)
        assert slots * processes * ring.batch_bytes(batch_size, img_size) <= ring.MAX_BYTES


def test_a_worker_leaves_nothing_open() -> None:
    Loader(Numbers, 2, 8, 1).close()  # what is opened once
    gc.collect()  # what other tests have left must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Loader(Numbers, 2, 8, 2) as loader:
            taken(loader, 3)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_memory_for_the_ring_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(SamplerError, match=r"could not be started: .*Too many open files"):
        Loader(Numbers, 2, 8, 1)
