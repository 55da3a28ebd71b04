"""Rank 1 fails while rank 0 waits for it: LAUNCHER python -m tests.cluster.fail_rank"""

from __future__ import annotations

import os

os.environ.update(TF_USE_LEGACY_KERAS="1", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")

from utils.ranks.killed_rank import end_at_once
from utils.ranks.world import init_world

if __name__ == "__main__":
    world = init_world(True)
    world.barrier()
    if world.rank == 1:
        end_at_once("on purpose\n", 76)
    world.barrier()
