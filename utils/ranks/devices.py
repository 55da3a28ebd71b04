"""The GPU, or the share of the cores, that a rank computes on."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import psutil
import tensorflow as tf

from utils.cli import UserError
from utils.cpu import cpu_flags
from utils.ranks.gpu_driver import HIDDEN, ask_driver
from utils.ranks.world import World
from utils.startup import NVIDIA


def threads_of_rank(local_size: int) -> int:
    """Return how many threads a rank may use: its share of the cores that it is bound to.

    Launchers bind ranks to cores or sockets of their own, or leave all ranks of a node on all cores.
    """
    cores = os.sched_getaffinity(0)
    me = psutil.Process()
    siblings = [p for p in me.parent().children() if p.name() == me.name()] if me.parent() else [me]
    if len(siblings) < local_size:  # each rank has a shell of its own between it and the launcher
        return max(1, len(cores) // local_size)
    sharing = sum(set(sibling.cpu_affinity()) == cores for sibling in siblings)
    return max(1, len(cores) // sharing)


def devices_of_rank(world: World, no_cuda: bool) -> list[Any]:
    """Collective: return the GPU of this rank, or none. UserError on all ranks if the ranks and GPUs do not fit."""
    devices = world.all_or_none(lambda: select_devices(world, no_cuda))
    _refuse_shared_gpus(world, devices)
    if world.is_first and not (devices or no_cuda) and NVIDIA.exists():
        sys.stderr.write(
            f"warning: there are NVIDIA GPUs here, but TensorFlow sees none, so the CPU is used: {why_no_gpu()}. "
            "--no_cuda says that it is meant\n"
        )
    return devices


def select_devices(world: World, no_cuda: bool) -> list[Any]:
    """Give each rank the GPU of its local rank, with memory growth, or none with `--no_cuda`. Return the rank's GPUs.

    A rank that sees one GPU alone, as with Slurm's --gpus-per-task=1, takes that. Sets TensorFlow's threads from the
    rank's cores. UserError when there are GPUs but fewer than ranks here.
    """
    if world.local_size > 1:  # alone, TensorFlow's own choice is right
        tf.config.threading.set_intra_op_parallelism_threads(threads_of_rank(world.local_size))
        tf.config.threading.set_inter_op_parallelism_threads(2)  # a collective must not block the computation
    gpus = [] if no_cuda else tf.config.list_physical_devices("GPU")
    if not gpus:
        tf.config.set_visible_devices([], "GPU")
        # TensorFlow fuses batch norm and activation into convolutions in inference. With AVX-512 that is 1.2 (float32)
        # to 2 times (bfloat16) as fast; without it, oneDNN runs the fused convolution of one image as scalar code,
        # which takes 30 times as long. Training steps are the same with and without.
        tf.config.optimizer.set_experimental_options({"remapping": "avx512f" in cpu_flags()})
        return []
    if 1 < len(gpus) < world.local_size:
        raise _too_few(world, len(gpus))
    mine = gpus[world.local_rank if world.horovod and len(gpus) > 1 else 0]
    tf.config.set_visible_devices(mine, "GPU")
    tf.config.experimental.set_memory_growth(mine, True)
    return [mine]


def _too_few(world: World, gpus: int) -> UserError:
    return UserError(
        f"{world.local_size} ranks on this node but {gpus} GPUs: start one rank a GPU (-map-by ppr:{gpus}:node), or "
        "use --no_cuda"
    )


def _refuse_shared_gpus(world: World, devices: list[Any]) -> None:
    """Collective: raise UserError if two ranks of a node have the same GPU, as far as the driver tells them apart."""
    if world.size == 1:
        return
    alone = bool(devices) and world.local_size > 1 and len(tf.config.list_physical_devices("GPU")) == 1
    # The driver is asked only where each rank sees one GPU: it may be the same one.
    uuid = uuid_of_first_gpu() if alone else ""
    mine = (platform.node(), uuid) if uuid else None
    seen = [rank for rank in world.gather(mine) if rank is not None]
    if len(set(seen)) < len(seen):
        raise _too_few(world, len(set(seen)))


def uuid_of_first_gpu() -> str:
    """Return the driver's name of the first GPU that this process sees; "" if it does not tell."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return first
    rows = ask_driver("uuid")
    return rows[int(first)] if first.isdecimal() and int(first) < len(rows) else ""


def free_gpu_memory() -> int:
    """Return the free bytes of the first GPU that this process sees. UserError: the driver does not tell."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    uuids, free = ask_driver("uuid"), ask_driver("memory.free")
    place = int(first) if first.isdecimal() else next((i for i, u in enumerate(uuids) if u == first), -1)
    if not 0 <= place < len(free) or not free[place].isdecimal():
        raise UserError(
            "--memory_report: nvidia-smi does not say how much memory the GPU has; --no_cuda measures main memory"
        )
    return int(free[place]) << 20


def why_no_gpu() -> str:
    """Return the likely reason why TensorFlow sees no GPU on a node that has some."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in HIDDEN:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides them (was a GPU asked for in the job?)"
    if not tf.test.is_built_with_cuda():
        return (
            f"{sys.prefix} has TensorFlow for CPUs; DEVICE=gpu sh run_train.sh makes the environment for GPUs"
        )
    return "CUDA's libraries or the driver do not fit; --verbose shows what TensorFlow says, docs/gpus.md what it needs"
