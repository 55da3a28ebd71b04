"""Measures the loop's own time a step, with a network that takes no time: what a fast device would wait for.

    python benchmarks/loop.py --img_size 1024 2048 --batch_size 2

The batches are there at once as well. The last lines are one JSON object per case: median milliseconds a step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, ClassVar

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tensorflow as tf

from samplers import Batch, PatchInfo
from samplers.workers import ring
from training.feed import Feed
from training.loop import Loop
from training.metrics import AUC_BINS
from training.options import build_parser
from training.profiler import Profiler
from training.progress import Progress
from training.run_log import RunLog
from training.trainer import Trainer
from utils.ranks.world import init_world

CLASSES, SLOTS = 2, 4


class Batches:
    """Stands for the loader: the same arrays again and again, as the slots of a ring are."""

    dropped: ClassVar[dict[str, tuple[str, int]]] = {}
    wait_seconds = 0.0

    def __init__(self, batch_size: int, img_size: int) -> None:
        self.slots = ring.views(ring.create(batch_size, img_size, SLOTS), batch_size, img_size, SLOTS)
        for images, labels in self.slots:
            images[:], labels[:] = 100, 1  # the memory is there
        self.patches = [PatchInfo("s", 0, 0, img_size, True)] * batch_size

    def __iter__(self) -> Iterator[Batch]:
        index = 0
        while True:
            yield Batch(index, *self.slots[index % len(self.slots)], self.patches)
            index += 1


def no_network(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Return what `Trainer._train_step` returns, of one pixel."""
    loss = tf.cast(images[0, 0, 0, 0], tf.float32) + tf.cast(labels[0, 0, 0], tf.float32) * 0
    confusion, histogram = tf.zeros((CLASSES, CLASSES), tf.int64), tf.zeros((2, AUC_BINS), tf.int64)
    return tf.stack([loss, stop]), loss, confusion, histogram


def measure(img_size: int, batch_size: int, steps: int) -> float:
    """Return the median seconds of a step."""
    words = f"--img_size {img_size} --batch_size {batch_size} --fpn_min_level 3 --freeze_bn 0 --num_steps 1000000000"
    options = build_parser().parse_args(words.split())
    options.warmup_steps = 0
    world = init_world(False)
    trainer = Trainer(options, CLASSES, world)
    graph = tf.function(no_network, autograph=False)
    trainer.train_graphs = {False: graph, True: graph}
    loader: Any = Batches(batch_size, img_size)
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder), options.num_steps, 0) as log:
        loop = Loop(
            options=options,
            world=world,
            trainer=trainer,
            loader=loader,
            validator=SimpleNamespace(),  # type: ignore[arg-type]
            samples=SimpleNamespace(add=lambda patches: None),  # type: ignore[arg-type]
            checkpointer=SimpleNamespace(),  # type: ignore[arg-type]
            profiler=Profiler(Path(folder), None, log.say),
            log=log,
            log_dir=Path(folder),
            progress=Progress.begin(CLASSES),
        )
        loop.progress.interval.start(0.0)
        loop.laps.start()
        seconds, start = [], 0.0
        feed = Feed(loader, trainer.gpu)
        for number, fed in enumerate(feed, 1):
            loop.train_on(number, fed, feed)
            now = time.perf_counter()
            if number > steps // 10:  # the first ones make the graph
                seconds.append(now - start)
            start = now
            if number == steps:
                return median(seconds)
    raise AssertionError("the batches are endless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--img_size", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    for img_size in options.img_size:
        milliseconds = 1000 * measure(img_size, options.batch_size, options.steps)
        print(
            json.dumps({"img_size": img_size, "batch_size": options.batch_size, "ms": round(milliseconds, 3)})
        )


if __name__ == "__main__":
    main()
