"""Measures the memory of a training step, on noise and in a process of its own, for `--memory_report`.

python -m training.memory '{"model": "effdetd0", ...}'       what that process runs; the options are train.py's

With `--ranks_per_patch` that process is one rank alone, with a strip of the patch and rows that stand for those of its
neighbours (`utils/ranks/lone_member.py`). Ranks that share a patch may be on several machines, whose memory cannot be
tried from one of them. Where a launcher starts it, as to compare, it is one of these ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from models.catalog import EfficientDetRow, lookup, multiple_of
from samplers import memory as samplers_memory
from training.options import option_values
from utils.cli import UserError
from utils.ranks.launcher import launcher_rank
from utils.startup import configure_environment, import_tensorflow, limit_malloc

GB = 1e9
# Sides that are measured, or those of patches with as many pixels per rank: memory is linear in the number of pixels,
# so larger ones follow.
SMALL = 512, 1024
RESERVE = 0.05  # share of the memory that is left for everything but the step
# Bytes of main memory by which a rank under mpirun took more than the same step of a process alone: 0.11 to 0.24 GB in
# D0's steps of 512² and 1024² on two ranks, with whole patches and with strips.
OF_RANKS = 0.25e9
CGROUPS, OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available(on_gpu: bool = False) -> int:
    """Return the bytes of main memory that are left, by the machine or by a cgroup (Slurm, a container).

    With `on_gpu` it is the memory of the GPU. UserError: its driver does not tell.
    """
    if on_gpu:
        from utils.ranks.devices import free_gpu_memory

        return free_gpu_memory()
    return min([int(psutil.virtual_memory().available), *_left_by_cgroups()])


def _left_by_cgroups() -> Iterator[int]:
    """Yield the bytes that are left by each limit on the cgroups of the process, from its own up to the root's.

    Slurm's limit is that of a cgroup far below the root. Page cache that the kernel can give back is not in use.
    """
    for line in OF_PROCESS.read_text().splitlines() if OF_PROCESS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                with contextlib.suppress(
                    OSError
                ):  # a container has the paths of its host, but not their folders
                    limit, usage = ((folder / name).read_text().strip() for name in names[:2])
                    rows = (row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    if limit.isdigit():
                        yield int(limit) - int(usage) + int(dict(rows).get(names[2], 0))


def measure(options: argparse.Namespace, steps: int = 1, **others: Any) -> dict[str, Any]:
    """Run `steps` steps of `options`, with the values in `others` instead, in a fresh process.

    `before`: its RSS in bytes before the model is built; `peak`: the largest in bytes, ever, of a GPU what TensorFlow
    took of it; `seconds` and `losses` of each step, the first with its trace; `parameters`: how many are trained;
    `exchanges`: of `--ranks_per_patch`, by name, the bytes that a rank sends to others each time. MemoryError if the
    process was killed, as the kernel does to what takes more than there is, or the GPU's memory was used up; else
    RuntimeError if it fails.
    """
    values = {**option_values(options), **others}
    command = [sys.executable, "-m", "training.memory", json.dumps({"steps": steps, **values})]
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PMIX_", "HOROVOD_"))}
    done = subprocess.run(
        command, capture_output=True, text=True, env=alone, cwd=Path(__file__).parents[1], check=False
    )
    if done.returncode < 0:
        raise MemoryError(f"a step of {values['img_size']}² was killed by signal {-done.returncode}")
    if done.returncode and "ResourceExhaustedError" in done.stderr:
        raise MemoryError(f"a step of {values['img_size']}² took more than the device has")
    if done.returncode:
        raise RuntimeError(f"a step of {values['img_size']}² failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def report(options: argparse.Namespace, ranks: int, on_gpu: bool = False) -> str:
    """Say what a step takes and what fits, with `ranks` on this machine. UserError if the step does not fit.

    Where two small steps say that it fits, it is also run as it is. `on_gpu`: of the GPU that each rank has for itself,
    else of main memory. With Keras's batch norm: Horovod's (`--sync_batch_norm`) takes more. Of ranks that share a
    patch it is what one of them takes for its strip, with the rows that it gets from the others.
    """
    room = available(on_gpu) * (1 - RESERVE) / (1 if on_gpu else ranks)
    room -= OF_RANKS if launcher_rank()[1] > 1 and not on_gpu else 0
    workers = 0 if on_gpu else workers_bytes(options)
    room -= workers
    of_workers = f"GB for its sampler workers (--sample_processes {options.sample_processes})"
    beside = f", besides {workers / GB:.1f} {of_workers}" if workers else ""
    each = "on the GPU of each rank" if on_gpu else f"for each of {ranks} on this machine"
    line = Line.measured(options)
    shared = options.ranks_per_patch > 1
    part = f" that a rank has of a patch with --ranks_per_patch {options.ranks_per_patch}," if shared else ""
    needed = line.bytes_of(options)
    lines = [
        f"memory: {line.fixed / GB:.1f} GB + {line.slope * 1e6 / GB:.2f} GB per megapixel{part} with "
        f"--batch_size {options.batch_size}, measured at {line.sides[0]}² and {line.sides[1]}²",
        f"  a step of {options.img_size}² takes {needed / GB:.1f} GB per rank, extrapolated; there are "
        f"{room / GB:.1f} GB {each}{beside}",
        f"  largest --img_size that fits, extrapolated: {line.largest_side(options, room)}",
    ]
    if needed > room:
        raise UserError("\n".join([*lines, f"  it does not fit. {_what_fits(options, room)}"]))
    try:
        peak = measure(options)["peak"]
    except MemoryError as error:
        raise UserError("\n".join([*lines, f"  {error}. {_what_fits(options, 0.9 * needed)}"])) from error
    alone = ", of one rank with its strip and its neighbours' rows" if shared else ""
    return "\n".join([*lines, f"  measured in one step of {options.img_size}²{alone}: {peak / GB:.1f} GB"])


def workers_bytes(options: argparse.Namespace) -> int:
    """Return the bytes of main memory that the sampler workers of a rank take at the most."""
    height = math.ceil(options.img_size / options.ranks_per_patch)
    return samplers_memory.workers_bytes(
        options.batch_size, options.img_size, options.sample_processes, height
    )


@dataclass(frozen=True)
class Line:
    """The peak memory of a rank, as a line: `fixed` bytes, and `slope` bytes per pixel that it has of a patch."""

    fixed: float
    slope: float
    sides: tuple[int, int]  # of the patches that were measured
    larger: dict[str, Any]  # what `measure` found with the larger of them

    @classmethod
    def measured(cls, options: argparse.Namespace, steps: int = 1, **others: Any) -> Line:
        """Measure a step of a small patch and `steps` of one with four times the pixels.

        The values in `others` take the place of those in `options`.
        """
        ranks = others.get("ranks_per_patch", options.ranks_per_patch)
        sides = _small_sides(options.model, ranks)
        small = measure(options, **{**others, "img_size": sides[0]})
        large = measure(options, steps, **{**others, "img_size": sides[1]})
        slope = max(1.0, (large["peak"] - small["peak"]) * ranks / (sides[1] ** 2 - sides[0] ** 2))
        return cls(small["peak"] - slope * sides[0] ** 2 / ranks, slope, sides, large)

    def bytes_of(self, options: argparse.Namespace) -> float:
        """Return the peak of a rank in a step of `options`."""
        return self.fixed + self.slope * options.img_size**2 / options.ranks_per_patch

    def largest_side(self, options: argparse.Namespace, room: float) -> int:
        """Return the largest side of a patch whose ranks have `room` bytes each."""
        pixels = max(0, int((room - self.fixed) / self.slope * options.ranks_per_patch))
        unit = multiple_of(options.model)
        return math.isqrt(pixels) // unit * unit


def _small_sides(model: str, ranks: int) -> tuple[int, int]:
    """Return sides of two patches of which each of `ranks` ranks has about SMALL² pixels."""
    unit = multiple_of(model)
    small, large = (max(1, round(side * math.sqrt(ranks) / unit)) * unit for side in SMALL)
    return small, max(large, small + unit)


def advice(options: argparse.Namespace) -> str:
    """Return advice for an out-of-memory error: the options that take less memory and are not in use yet."""
    words = [change for change, _ in _savings(options)]
    return (
        f"out of memory in a step of {options.img_size}² with --batch_size {options.batch_size}. To use less memory: "
        f"{', '.join([*words, 'more --ranks_per_patch', 'a smaller --img_size'])}; --memory_report says what fits"
    )


def _savings(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield options that take less memory, each together with those before it; the cheapest come first."""
    changes: list[tuple[str, Any]] = [("recompute", "blocks"), ("batch_size", 1), ("recompute", "full")]
    if isinstance(lookup(options.model), EfficientDetRow):
        changes.append(("fpn_min_level", 3))
    ranks = {
        "recompute": ("none", "blocks", "full"),
        "batch_size": (options.batch_size, 1),
        "fpn_min_level": (1, 2, 3),
    }
    together: dict[str, Any] = {}
    for name, value in changes:
        if ranks[name].index(getattr(options, name)) < ranks[name].index(value):
            together[name] = value
            yield f"--{name} {value}", dict(together)


def _what_fits(options: argparse.Namespace, room: float) -> str:
    """Return the first of the `_savings` with which the step fits, by extrapolation."""
    for _, others in _savings(options):
        needed = Line.measured(options, **others).bytes_of(options)
        if needed <= room:
            words = " ".join(f"--{name} {value}" for name, value in others.items())
            return f"With {words} it would: {needed / GB:.1f} GB, extrapolated"
    return (
        "Nor would it with less memory for activations: take a smaller --img_size or more --ranks_per_patch "
        "(python -m utils.plan says how many)"
    )


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


def main(argv: list[str]) -> None:
    """Build the model of the options, train it on noise and print one line of JSON."""
    values = json.loads(argv[0])
    options, steps = argparse.Namespace(**values), values["steps"]
    options.accumulate_steps = 1  # more take one more gradient, which is little
    configure_environment(options)
    limit_malloc(options.recompute)
    import_tensorflow(options.verbose)
    import tensorflow as tf

    from training.trainer import Trainer
    from utils.ranks.devices import select_devices
    from utils.ranks.lone_member import LoneMember, LoneWorld
    from utils.ranks.world import World, init_world

    ranks_per_patch, member = options.ranks_per_patch, LoneMember.inside(options.ranks_per_patch)
    launched = launcher_rank()[1] > 1
    world = init_world(True, ranks_per_patch=ranks_per_patch) if launched else LoneWorld(member=member)
    on_gpu = bool(select_devices(world if launched else World(), options.no_cuda))
    before = _rss()
    trainer = Trainer(options, 2, world)
    rng = np.random.default_rng(0)
    rows = world.group.strip(options.img_size).rows.height
    images = rng.integers(0, 256, (options.batch_size, rows, options.img_size, 3), dtype=np.uint8)
    labels = (images[..., 0] > 127).astype(np.uint8)
    times, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(trainer.train_step(images, labels, options.learning_rate, 0).loss)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if on_gpu:
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    found = {"before": before, "peak": peak, "seconds": times, "losses": losses}
    parameters = sum(v.shape.num_elements() for v in trainer.model.trainable_variables)
    print(json.dumps({**found, "parameters": parameters, "exchanges": member.sent}))


if __name__ == "__main__":
    main(sys.argv[1:])
