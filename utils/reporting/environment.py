"""Describes the machine and the versions that a run uses: <log_dir>/environment.json, for the report."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import tensorflow as tf

from utils.probe import container
from utils.ranks.devices import threads_of_rank
from utils.ranks.launcher import launcher_name
from utils.ranks.world import World, horovod_built, hvd

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
# Whatever lies beside them in the clone (environments, logs, data) is not looked at.
SOURCES = ("*.py", *(f"{room}/**/*.py" for room in ("training", "models", "samplers", "utils")))


def suite_version() -> str:
    """Return the version of pyproject.toml and a digest of the sources, which tells copies without git apart."""
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]):
        if path.parent.name not in ("tests", "benchmarks"):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return f"{found[1] if found else 'unknown'}, sources {digest.hexdigest()[:12]}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe_devices(world: World, gpus: list[Any]) -> str:
    """Return what this rank computes on: "CPU, 4 threads" or a GPU's name."""
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    threads = threads_of_rank(world.local_size)
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def describe_nodes(nodes: list[str]) -> str:
    """Return ["a", "a", "b"] as "3 on 2 nodes: a (2), b (1)"."""
    ranks = Counter(nodes)
    names = ", ".join(f"{name} ({count})" for name, count in list(ranks.items())[:8])
    return f"{len(nodes)} on {len(ranks)} node{'s' * (len(ranks) > 1)}: {names}{', …' * (len(ranks) > 8)}"


def _reduction(world: World, gpus: list[Any]) -> str:
    """Return a remark where GPUs reduce gradients through main memory; "" elsewhere."""
    if not gpus or not world.horovod or hvd is None or hvd.nccl_built():
        return ""
    return "; gradients go through main memory: load CUDA (nvcc) and set up again for NCCL, see docs/gpus.md"


def describe_environment(world: World, gpus: list[Any]) -> dict[str, str]:
    """Collective: return a text for each name; CPU, memory and versions are those of rank 0."""
    ranks = world.gather((platform.node(), describe_devices(world, gpus)))
    devices = Counter(device for _, device in ranks)
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(psutil.Process().create_time())),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "suite": suite_version(),
        "ranks": describe_nodes([node for node, _ in ranks]),
        "devices": "; ".join(f"{count} × {device}" for device, count in devices.items())
        + _reduction(world, gpus),
        "CPU": f"{cpu_name()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / GIB:.0f} GiB",
        "Horovod": horovod_built() if world.horovod else "not used, one process",
        "launcher": launcher_name(),
        "container": container(),
        "TensorFlow": f"{tf.__version__}, oneDNN {'on' if os.environ.get('TF_ENABLE_ONEDNN_OPTS') == '1' else 'off'}",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
