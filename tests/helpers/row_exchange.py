"""Exchanges rows between the ranks of a group and counts what is wrong. Started on several ranks.

python row_exchange.py RANKS_PER_PATCH
"""

from __future__ import annotations

import itertools
import json
import sys

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from models.spatial.exchange import take_rows
from models.spatial.rows import Range, overlap
from utils.ranks.world import World, init_world

HEIGHT, FILL = 13, 7.0


def exchange(case: str, world: World) -> dict[str, float]:
    """Collective: return how many values are wrong, and the relative error of the adjoint."""
    group = world.group
    have, need, dtype = setting(case, group.size)
    whole = np.random.default_rng(group.index).integers(-99, 99, (2, HEIGHT, 5, 3)).astype(float)
    rng = np.random.default_rng(100 + world.rank)
    start, stop = need[group.rank]
    inside = overlap((start, stop), (0, HEIGHT))
    wider = [
        (first - 1, last + 1) for first, last in need
    ]  # "far": other rows on some ranks, the same ones on others
    weights = rng.integers(-9, 9, (2, stop - start, 5, 3)).astype(float)

    @tf.function(autograph=False)
    def graph(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = take_rows(x, have, need, HEIGHT, group, "rows", FILL)
            y = (y + take_rows(x, have, wider, HEIGHT, group, "wider", FILL)[:, 1:-1]) / 2
            product = tf.reduce_sum(tf.cast(y, tf.float64) * weights)
        return y, tape.gradient(product, x)

    strip = whole[:, slice(*have[group.rank])]
    y, gradient = (tf.cast(value, tf.float64).numpy() for value in graph(tf.constant(strip, dtype)))
    wanted = np.full(y.shape, FILL)
    wanted[:, inside[0] - start : inside[1] - start] = whole[:, slice(*inside)]
    inner = slice(inside[0] - start, inside[1] - start)
    sides = np.array([(y[:, inner] * weights[:, inner]).sum(), (strip * gradient).sum(), np.sum(y != wanted)])
    forward, backward, wrong = hvd.allreduce(tf.constant(sides), op=hvd.Sum, name=f"{case}.sides").numpy()
    return {"wrong_rows": wrong, "adjoint": abs(forward - backward) / abs(forward)}


def setting(case: str, ranks: int) -> tuple[list[Range], list[Range], tf.DType]:
    """Return what ranks have and need, and the type of the values."""
    bounds = [HEIGHT * k // ranks for k in range(ranks + 1)]
    have = list(itertools.pairwise(bounds))
    halos = {"far": (5, 7), "below": (0, 1), "none_above": (0, 3), "bfloat16": (1, 2), "outside": (-1, 1)}
    above, below = halos[case]
    need = [(start - above, stop + below) for start, stop in have]
    return have, need, tf.bfloat16 if case == "bfloat16" else tf.float64


if __name__ == "__main__":
    world = init_world(True, False, int(sys.argv[1]))
    found = {case: exchange(case, world) for case in ("far", "below", "none_above", "bfloat16", "outside")}
    if world.is_first:
        print(json.dumps(found))
