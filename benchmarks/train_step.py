"""Measures time and memory of a training step on noise: the step that train.py runs, with its defaults.

    .venv/bin/python benchmarks/train_step.py --model effdetd0 --img_size 512 --batch_size 2 --fpn_min_level 3

The last line is a JSON object: median wall seconds and processor seconds (of all threads) per step after warm-up,
images/s, peak RSS of the process in GB. Wall seconds are those of the machine as it is, busy or not; processor seconds
change less with other work on it. Other options of train.py come after `--`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The suite is imported in functions: `peers.py` uses this file with other versions of the suite, and without any.
PRECISIONS = ("float32", "float16", "bfloat16")


def build_parser() -> argparse.ArgumentParser:
    """Return the options of the benchmarks that time a network."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="effdetd0")
    parser.add_argument("--img_size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--num_classes", type=int, default=2)
    parser.add_argument("--mixed_precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--fpn_min_level", type=int, default=1, help="finest level of EfficientDet's BiFPN")
    parser.add_argument("--output_stride", type=int, default=16, help="of DeepLab")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before these")
    parser.add_argument("options", nargs="*", help="options of train.py, after --")
    return parser


def set_up(options: argparse.Namespace) -> argparse.Namespace:
    """Prepare TensorFlow as train.py and predict.py do. Return all options of train.py."""
    from training.options import build_parser as train_parser
    from utils.startup import configure_environment, import_tensorflow

    names = ("model", "img_size", "batch_size", "mixed_precision", "fpn_min_level", "output_stride")
    words = [f"--{name}={getattr(options, name)}" for name in names]
    train_options = train_parser().parse_args([*words, *options.options])
    configure_environment(train_options)
    import_tensorflow(train_options.verbose)
    from utils.ranks.devices import select_devices
    from utils.ranks.world import World

    select_devices(World(), train_options.no_cuda)
    return train_options


def images_of(options: argparse.Namespace) -> Any:
    """Return noise, uint8 (B, H, W, 3): time and memory do not depend on the picture."""
    import numpy as np

    shape = (options.batch_size, options.img_size, options.img_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def make_step(options: argparse.Namespace) -> Callable[[], Any]:
    """Return one training step as a function without arguments; it returns when the step is done."""
    train_options = set_up(options)
    from training.trainer import Trainer
    from utils.ranks.world import World

    trainer = Trainer(train_options, options.num_classes, World())
    images = images_of(options)
    labels = images[..., 0] % options.num_classes
    return lambda: trainer.train_step(images, labels, 1e-3, 0)


def measure(options: argparse.Namespace, step: Callable[[], Any]) -> dict[str, Any]:
    """Run `step` and return the object that is printed."""
    times = []
    for _ in range(options.warm_up + options.steps):
        start, processor = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - start, time.process_time() - processor))
    wall, busy = zip(*times[options.warm_up :])
    median = statistics.median(wall)
    return {
        **vars(options),
        "seconds": round(median, 4),
        "processor_seconds": round(statistics.median(busy), 4),
        "fastest": round(min(wall), 4),
        "images_per_second": round(options.batch_size / median, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    print(json.dumps(measure(options, make_step(options))))


if __name__ == "__main__":
    main()
