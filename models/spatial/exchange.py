"""Exchange of rows between the ranks that share a patch, exact with its gradient.

The graphs of the ranks differ only in the numbers of rows. Each exchange is one alltoall to which every rank sends at
least one row, its own: where a rank had nothing to send or to receive, TensorFlow's optimizer of graphs would take its
exchange out, and the others would wait for it for ever. Horovod's other collectives have gradients that are averages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from models.spatial.rows import Plan, Range, length, overlap
from utils.ranks.group import Group

Piece = tuple[Range, tf.Tensor]  # rows, and a tensor (B, rows, W, C) of them

_memories: list[dict[str, tf.Tensor]] = []


@contextlib.contextmanager
def remembering(memory: dict[str, tf.Tensor] | None) -> Iterator[None]:
    """Let `memory` keep what comes in each exchange, by its name, and exchange nothing again that it has."""
    if memory is None:
        yield
        return
    _memories.append(memory)
    try:
        yield
    finally:
        _memories.pop()


def _send(x: tf.Tensor, sends: Sequence[int], receives: Sequence[int], group: Group, name: str) -> tf.Tensor:
    """Collective, but for what is remembered: see `Group.alltoall`."""
    if not _memories:
        return group.alltoall(x, sends, receives, name)
    if name not in _memories[-1]:
        _memories[-1][name] = group.alltoall(x, sends, receives, name)
    return _memories[-1][name]


def take_rows(
    x: tf.Tensor,
    have: Sequence[Range],
    need: Sequence[Range],
    height: int,
    group: Group,
    name: str,
    value: float = 0.0,
) -> tf.Tensor:
    """Collective: return the rows `need` of a feature map (B, height, W, C) of which ranks have the rows `have`.

    Both are given for each rank; `x` is what this rank has. Rows outside of the feature map are filled with `value`.
    """
    wanted, mine = need[group.rank], have[group.rank]
    inside = [overlap(rows, (0, height)) for rows in need]
    fill = inside[group.rank][0] - wanted[0], wanted[1] - inside[group.rank][1]
    if all(overlap(rows, needed) == needed for rows, needed in zip(have, inside)):
        start, stop = (row - mine[0] for row in inside[group.rank])
        x = x if (start, stop) == (0, x.shape[1]) else x[:, start:stop]
        return tf.pad(x, [[0, 0], fill, [0, 0], [0, 0]], constant_values=value) if any(fill) else x
    plan = Plan.of(group.rank, have, inside)
    with tf.name_scope(name):  # so the names of the other ops do not depend on the number of ops here
        return _exchange(x, plan, mine, fill, group, name, value)


def _exchange(
    x: tf.Tensor, plan: Plan, mine: Range, fill: tuple[int, int], group: Group, name: str, value: float
) -> tf.Tensor:
    above = sum(map(length, plan.receives[: group.rank]))
    below = sum(map(length, plan.receives[group.rank + 1 :]))
    rest = plan.own[0] + 1, plan.own[1]
    # What a rank gets of others it uses. If it gets nothing, it takes the row that it sent to itself for its own.
    gets, is_given_back = above + below > 0, sum(map(length, plan.sends)) > 1

    @tf.custom_gradient
    def exchanged(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        sent = [_cut((mine, x), rows) for rows in plan.sends]
        got = _alltoall(sent, plan.receives, group, name)
        filled = [tf.fill([x.shape[0], rows, *x.shape[2:]], tf.cast(value, x.dtype)) for rows in fill]
        own = [_cut((mine, x), plan.own)] if gets else [got[:, above : above + 1], _cut((mine, x), rest)]
        y = tf.concat([filled[0], got[:, :above], *own, got[:, above + 1 :], filled[1]], 1)

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            with tf.name_scope(f"{name}_back"):
                dy = dy[:, fill[0] : dy.shape[1] - fill[1]]
                received = tf.concat([dy[:, : above + 1], dy[:, dy.shape[1] - below :]], 1)
                back = _alltoall([received], plan.sends, group, f"{name}_back", plan.receives)
                kept = plan.own if is_given_back else rest
                total = dy[:, above + kept[0] - plan.own[0] : dy.shape[1] - below]
                outside = kept[0] - mine[0], mine[1] - kept[1]
                total = tf.pad(total, [[0, 0], outside, [0, 0], [0, 0]]) if any(outside) else total
                start = 0
                for rank, rows in enumerate(plan.sends):
                    if rank != group.rank or not is_given_back:
                        total = _add_rows(total, back[:, start : start + length(rows)], rows[0] - mine[0])
                    start += length(rows)
                return total

        return y, gradient

    return exchanged(x)


def _cut(piece: Piece, rows: Range) -> tf.Tensor:
    """Return `rows` of a piece that has them."""
    (start, _), x = piece
    return x[:, rows[0] - start : rows[1] - start]


def _add_rows(x: tf.Tensor, rows: tf.Tensor, start: int) -> tf.Tensor:
    """Return x (B, H, W, C) with `rows` (B, h, W, C) added from row `start` on, in the memory of x where it is free."""
    if not rows.shape[1]:
        return x
    places = np.indices(rows.shape[:2]).transpose(1, 2, 0) + np.array([0, start])
    return tf.tensor_scatter_nd_add(x, tf.constant(places, tf.int32), rows)


def _alltoall(
    parts: Sequence[tf.Tensor],
    receives: Sequence[Range],
    group: Group,
    name: str,
    sends: Sequence[Range] | None = None,
) -> tf.Tensor:
    """Return what comes for parts (B, rows, W, C), one for each rank, or for one part that is cut as `sends`."""
    splits = [part.shape[1] for part in parts] if sends is None else list(map(length, sends))
    rows_first = [tf.transpose(part, (1, 0, 2, 3)) for part in parts if part.shape[1]]
    got = _send(tf.concat(rows_first, 0), splits, list(map(length, receives)), group, name)
    return tf.transpose(got, (1, 0, 2, 3))


def gather(x: tf.Tensor, group: Group, name: str) -> tf.Tensor:
    """Collective: return the tensors (…) of all ranks as (ranks, …). Without a gradient."""
    if group.size == 1:
        return x[tf.newaxis]
    copies = tf.tile(x[tf.newaxis], [group.size, *[1] * x.shape.rank])
    return _send(copies, [1] * group.size, [1] * group.size, group, name)


def sum_over(x: tf.Tensor, group: Group, name: str) -> tf.Tensor:
    """Collective: return the sum of the tensors of all ranks.

    Its gradient is the sum of the ranks' gradients, for what is computed from the sum is computed on each of them.
    """

    def total(x: tf.Tensor, name: str) -> tf.Tensor:
        return tf.reduce_sum(gather(x, group, name), 0)

    @tf.custom_gradient
    def summed(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return total(x, name), lambda dy: total(dy, f"{name}_back")

    return summed(x) if group.size > 1 else x
