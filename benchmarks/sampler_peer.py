"""Measures the batch iterator of wholeslidedata, for `benchmarks/sampler.py --wholeslidedata INTERPRETER`.

python benchmarks/sampler_peer.py '{"slides": [[SLIDE, XML], ...], "spacing": 0.25, "img_size": 256, ...}'

It runs in an environment of its own that has wholeslidedata, openslide-python, openslide-bin and psutil. For each line
that it reads it takes batches for some seconds, and prints a JSON object with their rate and processor time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import wholeslidedata
from wholeslidedata.iterators import create_batch_iterator

MODE = "training"


def batches_of(case: dict[str, Any]) -> Iterator[Any]:
    """Return endless batches from one worker process: patches of the lesions, and their masks."""
    slides = [{"wsi": {"path": slide}, "wsa": {"path": outlines}} for slide, outlines in case["slides"]]
    config = {
        "yaml_source": {MODE: slides},
        "labels": {"tumor": 1, "_0": 1, "_1": 1},  # lesions of CAMELYON16, without exclusions
        "seed": case["seed"],
        "batch_shape": {
            "batch_size": case["batch_size"],
            "spacing": case["spacing"],
            "shape": [case["img_size"], case["img_size"], 3],
        },
    }
    return iter(create_batch_iterator(user_config={"wholeslidedata": {"default": config}}, mode=MODE, cpus=1))


def cpu_seconds() -> float:
    """Return the processor time in seconds of this process and of those that it has started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def main() -> None:
    case = json.loads(sys.argv[1])
    batches = batches_of(case)
    for _ in range(case["warm_up"]):
        next(batches)
    print(json.dumps({"version": wholeslidedata.__version__}), flush=True)
    for _ in sys.stdin:
        begin, begin_cpu, count = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - begin < case["seconds"]:
            next(batches)
            count += case["batch_size"]
        seconds = time.perf_counter() - begin
        print(json.dumps({"rate": count / seconds, "cpu": (cpu_seconds() - begin_cpu) / count}), flush=True)


if __name__ == "__main__":
    main()
