"""The bounded cache: what was used last stays, within the limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from samplers.slides.cache import BoundedCache


def test_what_was_used_last_stays() -> None:
    cache: BoundedCache[str, int] = BoundedCache(10)
    assert cache.put("a", 1, 4) == cache.put("b", 2, 4) == []
    assert cache.get("a") == 1
    assert cache.put("c", 3, 4) == [2]
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.cost) == (1, None, 3, 8)
    assert (cache.pop("a"), cache.pop("a"), cache.cost, len(cache)) == (1, None, 4, 1)
    assert cache.put("c", 5, 7) == []
    assert (cache.get("c"), cache.cost) == (5, 7)
    assert cache.clear() == [5]
    assert (len(cache), cache.cost) == (0, 0)


def test_the_newest_stays_whatever_it_costs() -> None:
    cache: BoundedCache[str, int] = BoundedCache(10)
    cache.put("a", 1, 4)
    assert cache.put("b", 2, 99) == [1]
    assert cache.get("b") == 2


def test_many_threads_leave_the_cost_right() -> None:
    cache: BoundedCache[int, int] = BoundedCache(50)

    def use(number: int) -> None:
        cache.put(number % 70, number, 1 + number % 3)
        cache.get(number % 11)
        cache.pop(number % 5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(5000)))
    assert cache.cost <= 50
    held = len(cache)
    assert len(cache.clear()) == held
    assert cache.cost == 0
