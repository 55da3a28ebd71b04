"""Makes synthetic slides in the layouts of CAMELYON16 and CAMELYON17, for a first training without own data.

    python -m utils.demo_slides --output data/demo
    python -m utils.demo_slides --output data/demo17 --layout camelyon17
    python -m utils.demo_slides --output data/patients --layout patients

The program can be stopped at any moment and run again. The package `utils.demo` makes the slides.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import UserError, non_negative_int, positive_int
from utils.demo.camelyon17 import make_camelyon17_demo, make_patients_demo
from utils.demo.slides import MIN_SIZE, make_demo


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make synthetic slides with lesions, masks and annotations.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the slides")
    add = parser.add_argument
    add(
        "--layout",
        choices=("camelyon16", "camelyon17", "patients"),
        default="camelyon16",
        help="layout of the folders; patients is that of camelyon17, with a patient of each stage and lesions of all "
        "sizes; default: camelyon16",
    )
    add(
        "--size",
        type=positive_int,
        help=f"side of a slide in pixels, at least {MIN_SIZE}; default: 4096, for camelyon17 2048; "
        "slides of patients with a large lesion are three times as wide",
    )
    number = non_negative_int
    add("--seed", type=number, default=0, help="random seed, which determines every byte; default: 0")
    add("--train", type=number, default=6, help="number of training slides (camelyon16); default: 6")
    add("--val", type=number, default=2, help="number of validation slides (camelyon16); default: 2")
    add("--processes", type=positive_int, help="number of processes; default: one per core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    processes = options.processes or len(os.sched_getaffinity(0))
    common = {"seed": options.seed, "processes": processes}
    try:
        if options.layout == "camelyon16":
            root = make_demo(options.output, options.train, options.val, options.size or 4096, **common)
        elif options.layout == "patients":
            root = make_patients_demo(options.output, size=options.size or 4096, **common)
        else:
            root = make_camelyon17_demo(options.output, size=options.size or 2048, **common)
    except UserError as error:
        print(f"demo_slides: {error}", file=sys.stderr)
        return 2
    print(f"demo slides: {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
