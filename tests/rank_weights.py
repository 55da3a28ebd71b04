"""Run by test_distributed.py on 2 ranks: trains on different data on each rank and prints what each holds."""

from __future__ import annotations

import json
import os
import sys
import zlib

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np

from utils.distributed import World, init_world
from utils.options import build_parser
from utils.training import Trainer

if __name__ == "__main__":
    if "--unwrapped" in sys.argv:  # what would be if the optimizer were not Horovod's
        World.wrap_optimizer = lambda self, optimizer, fp16_allreduce: optimizer
    options = build_parser().parse_args([word for word in sys.argv[1:] if word != "--unwrapped"])
    world = init_world(options.horovod)
    options.seed += 100 * world.rank  # other start weights on each rank, unless they are broadcast
    trainer = Trainer(options, 2, world)
    trainer.synchronise()
    rng = np.random.default_rng(world.rank)
    for _ in range(3):
        images = rng.integers(0, 255, (1, 128, 128, 3)).astype(np.uint8)
        result = trainer.train_step(images, (images[..., 0] > 127).astype(np.uint8), 1e-3, batch=0)
    trainer.average_statistics()
    digests = world.gather(
        {
            v.name: zlib.crc32(v.numpy().tobytes())
            for v in [*trainer.model.variables, *trainer.optimizer_variables]
        }
    )
    losses = world.gather(result.loss)
    if world.is_first:
        different = [name for name in digests[0] if len({d[name] for d in digests}) > 1]
        print(json.dumps({"variables": len(digests[0]), "different": different, "losses": losses}))
