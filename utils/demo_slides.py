"""Makes synthetic slides in the layouts of CAMELYON16 and CAMELYON17, to train on without any data.

    python -m utils.demo_slides --output data/demo
    python -m utils.demo_slides --output data/demo17 --layout camelyon17

It can be stopped at any moment and run again. The slides are made by `utils.demo.slides`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.demo.slides import MIN_SIZE, DemoError, make_camelyon17_demo, make_demo


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Makes synthetic slides with lesions, masks and annotations."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make them in")
    parser.add_argument(
        "--layout", choices=("camelyon16", "camelyon17"), default="camelyon16", help="default: camelyon16"
    )
    parser.add_argument(
        "--size", type=int, help=f"pixels a side, at least {MIN_SIZE}; default: 4096, for camelyon17 2048"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes; default: 0")
    parser.add_argument("--train", type=int, default=6, help="camelyon16: training slides; default: 6")
    parser.add_argument("--val", type=int, default=2, help="camelyon16: validation slides; default: 2")
    parser.add_argument("--processes", type=int, help="default: one a core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    processes = options.processes or len(os.sched_getaffinity(0))
    common = {"seed": options.seed, "processes": processes}
    try:
        if options.layout == "camelyon16":
            root = make_demo(options.output, options.train, options.val, options.size or 4096, **common)
        else:
            root = make_camelyon17_demo(options.output, size=options.size or 2048, **common)
    except DemoError as error:
        print(f"demo_slides: {error}", file=sys.stderr)
        return 2
    print(f"demo slides: {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
