"""Finds something about each of a run's slides once: by all ranks together, and never again in the next run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from samplers import kept
from samplers.pairs.pairing import SlidePair
from utils.ranks.single import Ranks

T = TypeVar("T")
_THREADS = 16  # that ask a file system for the states of files, which may take a millisecond each
_MAX_ENTRIES = 200_000  # of a file: those that were found last


def known_of(
    kind: str,
    options: Any,
    pairs: Sequence[SlidePair],
    ranks: Ranks,
    find: Callable[[Sequence[SlidePair]], dict[SlidePair, T]],
    encode: Callable[[T], Any],
    decode: Callable[[SlidePair, Any], T],
) -> dict[SlidePair, T]:
    """Collective: return what `find` returns for the pairs, in their order.

    Each rank looks at its share of them, as far as the result is not kept from another run whose `options` and files
    were the same. A UserError of one rank is raised on all of them. `encode` returns the JSON value to be kept of a
    result, None if it must not be; `decode` is its inverse, and is called on one rank. All results of a data set are in
    one file, which rank 0 alone reads and writes.
    """
    if not pairs:
        return {}
    root = os.path.commonpath([pair.slide.absolute().parent for pair in pairs])
    name = kept.name_of(kind, options, root)
    table = ranks.broadcast(kept.load_json(name) or {} if ranks.is_first else {})
    mine = list(pairs[ranks.rank :: ranks.size])
    with ThreadPoolExecutor(_THREADS) as pool:
        keys = dict(zip(mine, pool.map(_key, mine)))
    results = {pair: decode(pair, table[key]) for pair, key in keys.items() if key in table}
    fresh = ranks.all_or_none(lambda: find([pair for pair in mine if pair not in results]))
    new = {key: encode(result) for pair, result in fresh.items() if (key := keys[pair]) is not None}
    shares = ranks.gather(({**results, **fresh}, new))
    if ranks.is_first:
        _add(name, {key: value for _, part in shares for key, value in part.items() if value is not None})
    found = {pair: result for part, _ in shares for pair, result in part.items()}
    return {pair: found[pair] for pair in pairs}


def _key(pair: SlidePair) -> str | None:
    """Return the key of a pair in a table, None if its result cannot be kept (`kept.state_of`)."""
    try:
        return kept.name_of(
            "pair", kept.state_of(pair.slide), kept.state_of(pair.label), pair.partly_annotated
        )
    except OSError:
        return None


def _add(name: str, new: dict[str, Any]) -> None:
    """Add entries to a table, to which another job may have added some meanwhile."""
    if new:
        table = {**(kept.load_json(name) or {}), **new}
        kept.save_json(name, dict(list(table.items())[-_MAX_ENTRIES:]))
        kept.remove_old()
