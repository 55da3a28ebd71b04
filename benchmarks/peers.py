"""Races this suite's networks against those of others: one training step and one forward pass, in turns.

    P=benchmarks/peers.py
    python $P --peer automl --path CHECKOUT/efficientdet --fpn_min_level 3       # of github.com/google/automl
    python $P --peer bonlime --path CHECKOUT --model deeplab         # of github.com/bonlime/keras-deeplab-v3-plus
    python $P --peer torch --python PEERS/bin/python --network Unet --encoder efficientnet-b0 --fpn_min_level 3
    python $P --peer torch --python PEERS/bin/python --network DeepLabV3Plus --encoder tu-xception65 --model deeplab
    python $P --peer suite --path WORKTREE                           # another version of this suite

PEERS is an environment of its own with torch and segmentation-models-pytorch from PyPI; TensorFlow's peers run in this
suite's environment. Each measurement is a process of its own, ours and theirs in turns.

A training step is the forward pass from uint8 images, cross entropy at full resolution, the gradient and Adam. Ours is
that of train.py, which also clips the gradient and counts for the metrics. A forward pass ends with probabilities. The
last lines are a table, and before it comes a JSON object per process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peer_step import PEERS

OURS, WORK, PRECISIONS = "ours", ("train", "forward"), ("float32", "bfloat16")
FLAGS = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")  # of the CPU, that decide how fast it is

Found = list[dict[str, Any]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peer", choices=list(PEERS), required=True)
    parser.add_argument("--path", default=str(ROOT), help="folder of the peer's code; torch needs none")
    parser.add_argument("--python", default=sys.executable, help="interpreter that the peer runs in")
    parser.add_argument("--network", default="Unet", help="of torch: class of segmentation_models_pytorch")
    parser.add_argument("--encoder", default="efficientnet-b0", help="of torch: the network's encoder")
    parser.add_argument("--model", default="effdetd0", help="of ours and of automl")
    parser.add_argument("--fpn_min_level", type=int, default=1, help="of ours and of automl: finest level")
    parser.add_argument("--output_stride", type=int, default=16, help="of ours and of bonlime: of DeepLabV3+")
    parser.add_argument("--img_size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--num_classes", type=int, default=2)
    parser.add_argument("--work", choices=WORK, nargs="+", default=list(WORK))
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=8, help="steps of a process that are timed")
    parser.add_argument("--warm_up", type=int, default=3, help="steps of a process before these")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    rows, versions = [], {}
    for work in options.work:
        for precision in options.precisions:
            ours, theirs = race(options, work, precision)
            versions = {OURS: ours[0]["version"], options.peer: theirs[0]["version"]}
            rows.append(row(f"{work} {precision}", ours, theirs))
    print("\n".join([*header(options, versions), *rows]))


def race(options: argparse.Namespace, work: str, precision: str) -> tuple[Found, Found]:
    """Return what each process of ours and of the peer measured. Who is first changes from round to round."""
    ours: Found = []
    theirs: Found = []
    for number in range(options.rounds):
        for mine in (True, False) if number % 2 == 0 else (False, True):
            (ours if mine else theirs).append(measured(options, mine, work, precision))
    return ours, theirs


def measured(options: argparse.Namespace, ours: bool, work: str, precision: str) -> dict[str, Any]:
    """Run one process and return what it printed. SystemExit: it failed, with what it said."""
    case = {**vars(options), "work": work, "mixed_precision": precision}
    if ours:
        case |= {"peer": "suite", "path": str(ROOT), "python": sys.executable}
    command = [case["python"], str(ROOT / "benchmarks" / "peer_step.py"), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    line = done.stdout.splitlines()[-1]
    print(line, flush=True)
    return dict(json.loads(line))


def row(name: str, ours: Found, theirs: Found) -> str:
    """Return a line of the table: medians, and the ratios of the rounds, which are above 1 where ours is faster."""
    cells = [name]
    for key in ("processor_seconds", "seconds"):
        mine, other = ([found[key] for found in side] for side in (ours, theirs))
        ratios = [b / a for a, b in zip(mine, other)]
        cells += [f"{statistics.median(mine):.3f}", f"{statistics.median(other):.3f}"]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


def header(options: argparse.Namespace, versions: dict[str, str]) -> list[str]:
    """Return what was compared, on what, and the table's first two lines."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "")
    flags = next((line.split() for line in cpuinfo if line.startswith("flags")), [])
    columns = [f"{what}: {who}" for what in ("processor s", "wall s") for who in (OURS, options.peer, "ratio")]
    return [
        f"{len(os.sched_getaffinity(0))} cores of {cpu or platform.machine()}, of its flags "
        f"{', '.join(flag for flag in FLAGS if flag in flags) or 'none for AVX-512'}",
        *(f"{who}: {version}" for who, version in versions.items()),
        f"{options.img_size}², batch {options.batch_size}, {options.rounds} rounds of {options.steps} steps",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]


if __name__ == "__main__":
    main()
