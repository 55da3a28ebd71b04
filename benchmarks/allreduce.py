"""Measures how long ranks take to reduce the gradients of a model, as train.py reduces them: in groups, at once.

    mpirun -np 2 -host node1,node2 --bind-to none .venv/bin/python benchmarks/allreduce.py

Rank 0 prints a JSON object per model: bytes, and the median, least and largest seconds of the slowest rank.
`tests/cluster/test_allreduce.py` does it on two hosts of this machine, whose network is slowed down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.checkup import GRADIENTS
from utils.startup import configure_environment, import_tensorflow


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="reductions that are timed")
    options = parser.parse_args()
    configure_environment(argparse.Namespace(verbose=False, no_cuda=True))
    import_tensorflow(False)
    import tensorflow as tf

    from utils.ranks.world import GRADIENT_GROUPS, hvd, init_world

    world = init_world(True)
    for name, size in GRADIENTS.items():
        part = int(size) // 4 // GRADIENT_GROUPS
        groups = [
            tf.ones(part + (int(size) // 4 - part * GRADIENT_GROUPS) * (i == 0))
            for i in range(GRADIENT_GROUPS)
        ]
        seconds = []
        for repeat in range(options.repeats + 1):
            world.barrier()
            start = time.monotonic()
            hvd.grouped_allreduce(groups, op=hvd.Average, name=f"{name} {repeat}")[0].numpy()
            seconds.append(max(world.gather(time.monotonic() - start)))
        if world.is_first:
            timed = seconds[1:]  # the first one makes the connections
            print(
                json.dumps(
                    {
                        "model": name,
                        "ranks": world.size,
                        "bytes": int(size),
                        "seconds": round(statistics.median(timed), 4),
                        "least": round(min(timed), 4),
                        "largest": round(max(timed), 4),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
