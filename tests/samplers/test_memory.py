"""What a rank's workers take at the most is what their caches and rings may hold."""

from __future__ import annotations

import pytest

from samplers import memory
from samplers.workers import ring


def test_processes_and_batches_are_counted_for_training_and_validation() -> None:
    one, two = (memory.workers_bytes(1, 512, processes) for processes in (1, 2))
    assert two == 2 * one
    batches = ring.slot_count(1, 512, 1) * ring.batch_bytes(1, 512)
    larger = memory.workers_bytes(1, 1024, 1) - one
    assert larger == 2 * 3 * (batches + memory.COPIES * ring.batch_bytes(1, 512))
    assert memory.workers_bytes(1, 4096, 1, height=1024) < memory.workers_bytes(1, 4096, 1)


@pytest.mark.parametrize("cache", ["TILE_CACHE_BYTES", "MAX_BYTES", "MAX_REGION_BYTES"])
def test_each_cache_is_counted(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    before = memory.workers_bytes(1, 512, 1)
    monkeypatch.setattr(memory, cache, getattr(memory, cache) + 1000)
    assert memory.workers_bytes(1, 512, 1) - before == (1000 if cache == "MAX_REGION_BYTES" else 2000)
