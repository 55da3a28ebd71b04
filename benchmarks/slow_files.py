"""Measures sampling from a slow file system: each operation on a file of the slides' folder waits some milliseconds.

    python benchmarks/slow_files.py --folder /tmp/full_size --sample_processes 1 8 --ms 8

The slides are those of `full_size.py`, the waiting is in `slow_files.c`, which is compiled with `cc` and preloaded.
Each line is a JSON object: patches per second, the processor's milliseconds of a patch, and the operations that it
takes after the workers have opened the slides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.full_size import make_slide
from benchmarks.sampler import cpu_seconds
from benchmarks.sampler_memory import links
from samplers import SamplerConfig, training_loader
from samplers.workers.ring import slot_count

SOURCE = Path(__file__).with_suffix(".c")
KINDS = ("opens", "stats", "reads", "seeks")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the slide is, or is made")
    add("--tissue", type=float, default=1.0, help="share of the slide's sides that tissue takes")
    add("--slides", type=int, default=16)
    add("--ms", type=float, default=8.0, help="milliseconds that each operation waits")
    add("--sample_processes", type=int, nargs="+", default=[1, 8], help="worker processes, one case each")
    add("--img_size", type=int, default=512)
    add("--batches", type=int, default=60, help="batches of two patches that are measured, for each process")
    return parser


def compiled(folder: Path) -> Path:
    """Compile the library that waits, and return its path."""
    library = folder / "slow_files.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def slow_environment(library: Path, folder: Path, ms: float, counts: Path) -> dict[str, str]:
    """Return the environment in which the files of a folder are slow, and are counted in the file `counts`."""
    values = {"LD_PRELOAD": library, "SLOW_FOLDER": folder, "SLOW_MS": ms, "SLOW_COUNTS": counts}
    return {**os.environ, **{name: str(value) for name, value in values.items()}}


def read_counts(counts: Path) -> dict[str, int]:
    return dict(zip(KINDS, np.fromfile(counts, np.uint64).tolist()))


def sample(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Draw from slow slides and return what it cost. The slides' links are made by this process, as quickly as ever."""
    counts = Path(os.environ["SLOW_COUNTS"])
    original = make_slide(options.folder, 97_280, 215_040, options.tissue)
    config = SamplerConfig(sampler="surf", img_size=options.img_size, batch_size=2, batch_tumor_ratio=0.5)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pairs = links([original], options.slides, Path(folder))
        with training_loader(pairs, config, 0, 1, processes) as loader:
            batches = iter(loader)
            # Each worker has opened most of the slides, and what lay ready does not count.
            warm = 2 * options.slides * processes + processes * slot_count(2, options.img_size, processes)
            for _ in range(warm):
                next(batches)
            before, cpu, begin = read_counts(counts), cpu_seconds(loader), time.perf_counter()
            for _ in range(options.batches * processes):
                next(batches)
            seconds, cpu = time.perf_counter() - begin, cpu_seconds(loader) - cpu
            after = read_counts(counts)
    patches = 2 * options.batches * processes
    found = {kind: round((after[kind] - before[kind]) / patches, 2) for kind in KINDS}
    case = {"sample_processes": processes, "ms": options.ms, "img_size": options.img_size}
    rate, cpu_ms = round(patches / seconds, 2), round(cpu / patches * 1000, 1)
    return {**case, "patches_per_second": rate, "cpu_ms": cpu_ms, **found}


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    options = build_parser().parse_args(words)
    options.folder = options.folder.absolute()
    if "SLOW_COUNTS" in os.environ:  # preloaded
        (processes,) = options.sample_processes
        print(json.dumps(sample(options, processes)))
        return 0
    make_slide(options.folder, 97_280, 215_040, options.tissue)
    with tempfile.TemporaryDirectory() as name:
        library, counts = compiled(Path(name)), Path(name) / "counts"
        environment = slow_environment(library, options.folder, options.ms, counts)
        rates = []
        for processes in options.sample_processes:
            case = [sys.executable, __file__, *words, "--sample_processes", str(processes)]
            done = subprocess.run(case, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rates.append(found["patches_per_second"])
            print(json.dumps({**found, "ratio": round(rates[-1] / rates[0], 2)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
