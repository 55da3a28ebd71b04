"""Measures what `--ranks_per_patch` saves and costs: memory of a rank and time of a step, against one rank alone.

    .venv/bin/python benchmarks/spatial.py --models effdetd0 deeplab --img_sizes 1024 2048 --ranks 1 2 4

All of it is on this machine, whose cores the ranks of a case share: two ranks with a core each against one rank with
both. With more ranks than cores only the memory means something. Each case is a step of train.py on noise, in fresh
processes, and prints one JSON object: `gb`, the largest part of a rank's peak RSS above its RSS before the model was
built; the median seconds of the steps after the first one, which traces; and both as shares of the case with the first
number of ranks. Options of train.py come after `--`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.catalog import MODELS
from training.memory import GB
from training.options import build_parser as train_parser
from training.options import option_values
from training.precision import settle_precision
from utils.ranks.world import World

ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=["effdetd0"])
    parser.add_argument("--img_sizes", type=int, nargs="+", default=[1024, 2048], help="sides in pixels")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks per patch")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of each case, of which the first one traces"
    )
    parser.add_argument("options", nargs="*", help="options of train.py, after --")
    return parser


def measure(options: argparse.Namespace, steps: int) -> list[dict[str, Any]]:
    """Run steps of `options` on as many ranks as share a patch. Return what `training.memory` prints of each rank."""
    ranks = options.ranks_per_patch
    case = json.dumps({"steps": steps, **option_values(options)})
    words = [sys.executable, "-m", "training.memory", case]
    if ranks > 1:
        mpirun = str(Path(sys.executable).parent / "mpirun")
        words = [mpirun, "-np", str(ranks), "--oversubscribe", "--bind-to", "none", *words]
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **allow}, capture_output=True, text=True, check=False
    )
    found = list(_objects(done.stdout))
    if done.returncode or len(found) != ranks:
        raise SystemExit(f"{ranks} ranks failed (exit {done.returncode}):\n{done.stderr[-3000:]}")
    return found


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in `text`. The launcher may put the lines of two ranks into one."""
    start = text.find('{"')
    while start >= 0:
        value, end = json.JSONDecoder().raw_decode(text, start)
        yield value
        start = text.find('{"', end)


def main(argv: Sequence[str] | None = None) -> None:
    asked = build_parser().parse_args(argv)
    for model, img_size in itertools.product(asked.models, asked.img_sizes):
        first: dict[str, Any] = {}
        for ranks in asked.ranks:
            words = ["--model", model, "--img_size", str(img_size), "--ranks_per_patch", str(ranks)]
            options = train_parser().parse_args(["--batch_size", "1", "--no_cuda", *asked.options, *words])
            settle_precision(options, False, World())
            found = measure(options, asked.steps)
            result = {
                "model": model,
                "img_size": img_size,
                "ranks_per_patch": ranks,
                "mixed_precision": options.mixed_precision,
                "options": asked.options,
                "gb": max(rank["peak"] - rank["before"] for rank in found) / GB,
                "peak_gb": max(rank["peak"] for rank in found) / GB,
                "seconds": max(statistics.median(rank["seconds"][1:] or [math.nan]) for rank in found),
                "losses": found[0]["losses"],
            }
            first = first or result
            result.update({f"{name}_share": result[name] / first[name] for name in ("gb", "seconds")})
            rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
            print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
