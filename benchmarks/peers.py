"""Races this suite's networks against those of others: one training step and one forward pass, in turns.

    P=benchmarks/peers.py
    python $P --peer automl --path CHECKOUT/efficientdet --fpn_min_level 3       # of github.com/google/automl
    python $P --peer bonlime --path CHECKOUT --model deeplab         # of github.com/bonlime/keras-deeplab-v3-plus
    python $P --peer torch --python PEERS/bin/python --network Unet --encoder efficientnet-b0 --fpn_min_level 3
    python $P --peer torch --python PEERS/bin/python --network DeepLabV3Plus --encoder tu-xception65 --model deeplab
    python $P --peer suite --path WORKTREE                           # another version of this suite

PEERS is an environment of its own with torch and segmentation-models-pytorch from PyPI; TensorFlow's peers run in this
suite's environment. Both sides are processes of their own, which compute some steps in turns while the other one waits.
On a busy machine bind both to one core (`taskset -c 0 python …`): threads that wait for each other waste its time.

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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peer_step import PEERS
from benchmarks.turns import Side

ROOT = Path(__file__).resolve().parents[1]
# What PyTorch's tuning guide gets from another malloc: freed memory stays. Page faults were a quarter of DeepLabV3+'s
# step; TensorFlow has few of them.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
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
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before the first turn")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    rows, versions = [], {}
    for work in options.work:
        for precision in options.precisions:
            with (
                side_of(options, True, work, precision) as ours,
                side_of(options, False, work, precision) as theirs,
            ):
                versions = {OURS: ours.answer()["version"], options.peer: theirs.answer()["version"]}
                race(ours, theirs, options.rounds)
                rows.append(row(f"{work} {precision}", ours.found, theirs.found))
    print("\n".join([*header(options, versions), *rows]))


def side_of(options: argparse.Namespace, ours: bool, work: str, precision: str) -> Side:
    """Start the process that computes one network's steps when it is asked to."""
    case = {**vars(options), "work": work, "mixed_precision": precision}
    if ours:
        case |= {"peer": "suite", "path": str(ROOT), "python": sys.executable}
    command = [case["python"], str(ROOT / "benchmarks" / "peer_step.py"), json.dumps(case)]
    return Side(command, KEPT_MEMORY if case["peer"] == "torch" else None)


def race(ours: Side, theirs: Side, rounds: int) -> None:
    """Let both compute in turns. Who is first changes from round to round."""
    for number in range(rounds):
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            side.measure()


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
    sides = (OURS, options.peer, "ratio")
    columns = [f"{what}: {who}" for what in ("processor s", "wall s") for who in sides]
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
