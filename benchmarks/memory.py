"""Measures memory and time of a training step of train.py, with optimizer and metrics, on noise.

    .venv/bin/python benchmarks/memory.py --models effdetd0 --img_sizes 1024 2048 --recompute none blocks full

Each case runs in a fresh process and prints one JSON object: `peak_gb`, the peak of the process's RSS; `gb`, its part
above the RSS before the model was built; `gb_per_mp`, that part per megapixel of the batch; the median seconds of the
steps after the first one, which traces; and the losses. Options of train.py come after `--`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.catalog import MODELS, RECOMPUTE
from training.memory import GB, measure
from training.options import build_parser as train_parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=["effdetd0"])
    parser.add_argument("--img_sizes", type=int, nargs="+", default=[1024], help="sides in pixels")
    parser.add_argument("--recompute", choices=RECOMPUTE, nargs="+", default=list(RECOMPUTE))
    parser.add_argument("--mixed_precision", nargs="+", default=["float32"])
    parser.add_argument("--steps", type=int, default=3, help="steps of each case")
    parser.add_argument("options", nargs="*", help="options of train.py, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    asked = build_parser().parse_args(argv)
    cases = itertools.product(asked.models, asked.img_sizes, asked.recompute, asked.mixed_precision)
    for model, img_size, recompute, precision in cases:
        case = {"model": model, "img_size": img_size, "recompute": recompute, "mixed_precision": precision}
        options = train_parser().parse_args(["--batch_size", "1", *asked.options])
        found = measure(options, asked.steps, **case)
        megapixels = options.batch_size * img_size**2 / 1e6
        gb = (found["peak"] - found["before"]) / GB
        result = {
            **case,
            "options": asked.options,
            "gb": round(gb, 2),
            "gb_per_mp": round(gb / megapixels, 2),
            "peak_gb": round(found["peak"] / GB, 2),
            "seconds": round(statistics.median(found["seconds"][1:] or [math.nan]), 2),
            "first_seconds": round(found["seconds"][0], 1),
            "losses": found["losses"],
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
