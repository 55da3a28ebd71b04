"""Measures how training scales: 1 rank on 1 core against 2 ranks on 1 core each, and what follows for many ranks.

    .venv/bin/python benchmarks/scaling.py --model effdetd0 --img_size 256 --batch_size 2

Prints a JSON object per case: seconds per step, images/s, time in the allreduce (from Horovod's timeline), and bytes
that a rank reduces per step. The projection comes last: the step of N ranks is a rank's own step plus a ring allreduce
(`utils/ranks/network.py`), nothing of it hidden behind the computation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.ranks.network import Network, add_network_options

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
REDUCTIONS = ("MPI_ALLREDUCE", "GLOO_ALLREDUCE", "NCCL_ALLREDUCE")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="effdetd0")
    parser.add_argument("--img_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--fpn_min_level", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before these")
    parser.add_argument("--fp16_allreduce", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[64, 512], help="numbers of ranks of the projection"
    )
    add_network_options(parser)
    return parser


def child(options: argparse.Namespace) -> None:
    """Train one rank on noise; the first rank prints what it measured."""
    import numpy as np

    from training.options import build_parser as training_parser
    from training.trainer import Trainer
    from utils.ranks.devices import select_devices
    from utils.ranks.world import init_world

    words = [f"--{n}={getattr(options, n)}" for n in ("model", "img_size", "batch_size", "fpn_min_level")]
    words += ["--fp16_allreduce"] * options.fp16_allreduce
    world = init_world(True)
    select_devices(world, no_cuda=True)
    trainer = Trainer(training_parser().parse_args(words), 2, world)
    trainer.synchronise()
    shape = (options.batch_size, options.img_size, options.img_size, 3)
    images = np.random.default_rng(world.rank).integers(0, 256, shape, dtype=np.uint8)
    labels = (images[..., 0] > 127).astype(np.uint8)
    seconds = []
    for step in range(options.warm_up + options.steps):
        start = time.perf_counter()
        trainer.train_step(images, labels, 1e-3, step)
        seconds.append(time.perf_counter() - start)
    if world.is_first:
        parameters = sum(v.shape.num_elements() for v in trainer.model.trainable_variables)
        median = statistics.median(seconds[options.warm_up :])
        print(json.dumps({"seconds": median, "parameters": parameters}))


def measure(options: argparse.Namespace, ranks: int, fp16: bool) -> dict[str, Any]:
    """Measure a case in processes of its own, with one core each."""
    with tempfile.TemporaryDirectory() as folder:
        timeline = Path(folder) / "timeline.json"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOROVOD_TIMELINE": str(timeline),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        words = [sys.executable, str(Path(__file__).resolve()), "--child"]
        for name in ("model", "img_size", "batch_size", "fpn_min_level", "steps", "warm_up"):
            words += [f"--{name}", str(getattr(options, name))]
        words += ["--fp16_allreduce"] * fp16
        launcher = [str(Path(sys.executable).parent / "mpirun"), "-np", str(ranks), "--bind-to", "core"]
        if ranks == 1:  # train.py runs one process without Horovod
            launcher = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
        done = subprocess.run(
            [*launcher, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{ranks} ranks failed:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        reducing = list(reductions(timeline)) if ranks > 1 else []
    seconds, steps = found["seconds"], options.warm_up + options.steps
    return {
        "model": options.model,
        "img_size": options.img_size,
        "batch_size": options.batch_size,
        "ranks": ranks,
        "fp16_allreduce": fp16,
        "seconds": round(seconds, 4),
        "images_per_second": round(ranks * options.batch_size / seconds, 3),
        "allreduce_seconds": round(sum(reducing) / steps, 4),
        "bytes_a_step": found["parameters"] * (2 if fp16 else 4) if ranks > 1 else 0,
        "parameters": found["parameters"],
    }


def reductions(timeline: Path) -> Iterator[float]:
    """Return the seconds of each reduction in Horovod's timeline, each of its fused tensors once."""
    text = timeline.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("]") else f"{text}]")
    began: dict[int, float] = {}
    spans = set()
    for event in events:
        if event.get("ph") == "B" and event.get("name") in REDUCTIONS:
            began[event["pid"]] = event["ts"]
        elif event.get("ph") == "E" and event.get("pid") in began:
            spans.add((began.pop(event["pid"]), event["ts"]))
    end = 0.0
    for start, stop in sorted(spans):  # tensors of a group share the time
        yield max(0.0, stop - max(start, end)) / 1e6
        end = max(end, stop)


def project(options: argparse.Namespace, alone: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the projected steps of many ranks, from the step of one rank."""
    for ranks in options.ranks:
        for fp16 in (False, True):
            size = alone["parameters"] * (2 if fp16 else 4)
            ring = Network.of(options).allreduce(size, ranks)
            step = alone["seconds"] + ring
            yield {
                "projection": options.model,
                "ranks": ranks,
                "fp16_allreduce": fp16,
                "megabytes_a_step": round(size / 1e6, 1),
                "allreduce_seconds": round(ring, 4),
                "images_per_second": round(ranks * alone["batch_size"] / step, 1),
                "efficiency": round(alone["seconds"] / step, 3),
            }


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if options.child:
        child(options)
        return
    alone = measure(options, 1, fp16=False)
    print(json.dumps(alone))
    for fp16 in (False, True):
        together = measure(options, 2, fp16)
        together["efficiency"] = round(together["images_per_second"] / (2 * alone["images_per_second"]), 3)
        print(json.dumps(together))
    for row in project(options, alone):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
