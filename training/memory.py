"""Measures the memory of a training step, on noise and in a process of its own, for `--memory_report`.

python -m training.memory '{"model": "effdetd0", ...}'       what that process runs; the options are train.py's
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from models.catalog import EfficientDetRow, lookup, multiple_of
from training.options import option_values
from utils.cli import UserError
from utils.startup import configure_environment, import_tensorflow, limit_malloc

GB = 1e9
SMALL = (
    512,
    1024,
)  # sides that are measured: memory is linear in the number of pixels, so larger ones follow
RESERVE = 0.05  # share of the memory that is left for everything but the step
CGROUPS = (  # limit and usage, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available(on_gpu: bool = False) -> int:
    """Return the bytes of main memory that are left, by the machine or by a cgroup (Slurm, a container).

    With `on_gpu` it is the memory of the GPU. UserError: its driver does not tell.
    """
    if on_gpu:
        from utils.ranks.devices import free_gpu_memory

        return free_gpu_memory()
    left = psutil.virtual_memory().available
    for limit, usage in (tuple(Path(name) for name in names) for names in CGROUPS):
        if limit.exists() and limit.read_text().strip().isdigit():
            left = min(left, int(limit.read_text()) - int(usage.read_text()))
    return left


def measure(options: argparse.Namespace, steps: int = 1, **others: Any) -> dict[str, Any]:
    """Run `steps` steps of `options`, with the values in `others` instead, in a fresh process.

    `before`: its RSS in bytes before the model is built; `peak`: the largest in bytes, ever, of a GPU what TensorFlow
    took of it; `seconds` and `losses` of each step, the first with its trace. MemoryError if the process was killed,
    as the kernel does to what takes more than there is, or the GPU's memory was used up; else RuntimeError if it fails.
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
    else of main memory. With Keras's batch norm: Horovod's (`--sync_batch_norm`) takes more.
    """
    room = available(on_gpu) * (1 - RESERVE) / (1 if on_gpu else ranks)
    each = "on the GPU of each rank" if on_gpu else f"for each of {ranks} on this machine"
    fixed, slope = _line(options)
    multiple = multiple_of(options.model)
    side = math.isqrt(max(0, int((room - fixed) / slope))) // multiple * multiple
    needed = fixed + slope * options.img_size**2
    lines = [
        f"memory: {fixed / GB:.1f} GB + {slope * 1e6 / GB:.2f} GB per megapixel with "
        f"--batch_size {options.batch_size}, measured at {SMALL[0]}² and {SMALL[1]}²",
        f"  a step of {options.img_size}² takes {needed / GB:.1f} GB per rank, extrapolated; there are "
        f"{room / GB:.1f} GB {each}",
        f"  largest --img_size that fits, extrapolated: {side}",
    ]
    if needed > room:
        raise UserError("\n".join([*lines, f"  it does not fit. {_what_fits(options, room)}"]))
    try:
        peak = measure(options)["peak"]
    except MemoryError as error:
        raise UserError("\n".join([*lines, f"  {error}. {_what_fits(options, 0.9 * needed)}"])) from error
    return "\n".join([*lines, f"  measured in one step of {options.img_size}²: {peak / GB:.1f} GB"])


def advice(options: argparse.Namespace) -> str:
    """Return advice for an out-of-memory error: the options that take less memory and are not in use yet."""
    words = [change for change, _ in _savings(options)]
    return (
        f"out of memory in a step of {options.img_size}² with --batch_size {options.batch_size}. To use less memory: "
        f"{', '.join([*words, 'a smaller --img_size'])}; --memory_report says what fits"
    )


def _line(options: argparse.Namespace, **others: Any) -> tuple[float, float]:
    """Return the peak memory as a line: (bytes, bytes per pixel of a patch), measured at the SMALL sides."""
    small, large = (float(measure(options, img_size=side, **others)["peak"]) for side in SMALL)
    slope = max(1.0, (large - small) / (SMALL[1] ** 2 - SMALL[0] ** 2))
    return small - slope * SMALL[0] ** 2, slope


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
        fixed, slope = _line(options, **others)
        needed = fixed + slope * options.img_size**2
        if needed <= room:
            words = " ".join(f"--{name} {value}" for name, value in others.items())
            return f"With {words} it would: {needed / GB:.1f} GB, extrapolated"
    return "Nor would it with less memory for activations: take a smaller --img_size"


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
    from utils.ranks.world import World

    on_gpu = bool(select_devices(World(), options.no_cuda))
    before = _rss()
    trainer = Trainer(options, 2, World())
    rng = np.random.default_rng(0)
    shape = (options.batch_size, options.img_size, options.img_size)
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = (images[..., 0] > 127).astype(np.uint8)
    times, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(trainer.train_step(images, labels, options.learning_rate, 0).loss)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if on_gpu:
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    print(json.dumps({"before": before, "peak": peak, "seconds": times, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1:])
