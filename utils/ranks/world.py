"""All Horovod of the suite. One process runs without a launcher, and `--no-horovod` without Horovod.

Every collective is called by all ranks in the same order; the names below say which functions are
collective. Each line that is there for Horovod is marked so in train.py as well.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from utils.cli import UserError
from utils.probe import apptainer_image, version_of
from utils.ranks import killed_rank
from utils.ranks.group import Group
from utils.ranks.interfaces import leave_out_bridges
from utils.ranks.launcher import (
    COMMANDS,
    FAMILIES,
    LAUNCHERS,
    SRUN,
    is_launched_from_outside,
    is_task_of_srun,
    launcher_mpi,
    launcher_name,
    launcher_rank,
)
from utils.ranks.patch_group import PatchGroup
from utils.ranks.single import Ranks, require_company

try:
    import horovod.tensorflow as hvd
    import horovod.tensorflow.keras as hvd_keras
except ImportError:  # one process works without it
    hvd = hvd_keras = None

T = TypeVar("T")

# Gradients are reduced in this many groups, the first while the others are still computed. One by one, as is
# Horovod's default, tracing the step of EfficientDet-D0 takes minutes: a tf.cond for each of 400 variables.
GRADIENT_GROUPS = 8


@dataclass(frozen=True)
class World(Ranks):
    """The ranks of this run: `rank` of `size`, `local_rank` of `local_size` on this node."""

    local_rank: int = 0
    local_size: int = 1
    horovod: bool = False
    ranks_per_patch: int = 1
    process_set: Any = None  # Horovod's, of the ranks that share this rank's patches

    @cached_property
    def group(self) -> Group:
        """Return the ranks that share this rank's patches."""
        place = PatchGroup.of(self.rank, self.size, self.ranks_per_patch)
        return Group(place.rank, place.size, place.index, place.count, self.process_set)

    def gather(self, value: T) -> list[T]:
        with self.activity.waiting():
            return hvd.allgather_object(value) if self.size > 1 else [value]

    def gather_in_group(self, value: T) -> list[T]:
        if self.ranks_per_patch == 1:
            return [value]
        with self.activity.waiting():
            return hvd.allgather_object(value, name="group", process_set=self.process_set)

    def broadcast(self, value: T) -> T:
        with self.activity.waiting():
            return hvd.broadcast_object(value, root_rank=0) if self.size > 1 else value

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Collective: return the sum over ranks, of the same shape and dtype (int64 or float64, for exact counts)."""
        with self.activity.waiting():
            return hvd.allreduce(tf.constant(array), op=hvd.Sum).numpy() if self.size > 1 else array

    # --- inside a tf.function -------------------------------------------------------------------------
    def mean_in_graph(self, tensor: tf.Tensor) -> tf.Tensor:
        """Collective, also inside a tf.function: return the mean over ranks."""
        return hvd.allreduce(tensor, op=hvd.Average) if self.size > 1 else tensor

    # --- training ---------------------------------------------------------------------------------------
    def wrap_optimizer(
        self,
        optimizer: tf.keras.optimizers.Optimizer,
        variables: Sequence[tf.Variable],
        fp16_allreduce: bool = False,
        accumulate_steps: int = 1,
    ) -> tf.keras.optimizers.Optimizer:
        """Return an optimizer that averages the gradients over ranks when it computes them (in FP16 if asked).

        With `accumulate_steps` above 1 only every so many calls update the variables, by the mean of their gradients.
        """
        if not self.horovod:
            return optimizer
        # Horovod: `minimize(loss, variables, tape=tape)` reduces, `apply_gradients` alone would not. This is the
        # function for Keras, because that of horovod.tensorflow takes `groups` but ignores them.
        wrapped = hvd_keras.DistributedOptimizer(
            optimizer,
            compression=_compression(fp16_allreduce),
            groups=GRADIENT_GROUPS,
            backward_passes_per_step=accumulate_steps,
            average_aggregated_gradients=accumulate_steps > 1,
        )
        if accumulate_steps > 1:
            # Otherwise Horovod would make these variables three times, while the first graph is traced.
            wrapped._agg_helper.locally_aggregated_grads = {
                i: tf.Variable(tf.zeros_like(variable), trainable=False)
                for i, variable in enumerate(variables)
            }
        return wrapped

    def adasum_tape(self, tape: tf.GradientTape, fp16_allreduce: bool) -> tf.GradientTape:
        """Return a tape whose gradients are combined over ranks by Adasum (arXiv 2006.02924).

        Horovod's Keras optimizer only averages, so this goes with one that is not wrapped; nor does Horovod
        know groups of tensors with Adasum.
        """
        return hvd.DistributedGradientTape(tape, compression=_compression(fp16_allreduce), op=hvd.Adasum)

    def batch_norm(self, synchronised: bool) -> type[tf.keras.layers.Layer] | None:
        """Return Horovod's batch norm, whose statistics are those of all ranks' batches, or None: the models' own."""
        if not synchronised or self.size == 1:
            return None
        # Horovod's asks for what TensorFlow 1 had, and Keras warns of that in every layer's call.
        warnings.filterwarnings("ignore", "`layer.updates` will be removed", UserWarning)
        return hvd.SyncBatchNormalization

    def broadcast_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Collective: copy rank 0's values into every rank's variables."""
        if self.size > 1:
            with self.activity.waiting():
                _replace(variables, lambda tensor: hvd.broadcast(tensor, root_rank=0))

    def average_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Collective: set every (float) variable to its mean over ranks."""
        if self.size > 1:
            with self.activity.waiting():
                _replace(variables, lambda tensor: hvd.allreduce(tensor, op=hvd.Average))


def _compression(fp16_allreduce: bool) -> Any:
    return hvd.Compression.fp16 if fp16_allreduce else hvd.Compression.none


def _replace(variables: Sequence[tf.Variable], collective: Callable[[tf.Tensor], tf.Tensor]) -> None:
    """Put all variables of a dtype through `collective` as one vector.

    This is one message instead of a thousand. hvd.broadcast_variables would also trace a graph of them for a minute.
    """
    for dtype in sorted({variable.dtype.as_numpy_dtype for variable in variables}, key=str):
        group = [variable for variable in variables if variable.dtype.as_numpy_dtype == dtype]
        flat = collective(tf.constant(np.concatenate([v.numpy().ravel() for v in group]))).numpy()
        ends = np.cumsum([v.shape.num_elements() for v in group])
        for variable, part in zip(group, np.split(flat, ends[:-1])):
            variable.assign(part.reshape(variable.shape))


def mpi_of_horovod() -> str | None:
    """Return the MPI that Horovod was built with: "openmpi", "mpich" (Intel MPI's ABI is the same), None if neither."""
    if hvd is None:
        return None
    library = Path(sys.modules[hvd.__name__].__file__ or "").parent
    for path in library.glob("mpi_lib*.so"):
        content = path.read_bytes()
        for name, kind in ((b"libmpi.so.40", "openmpi"), (b"libmpi.so.12", "mpich")):
            if name in content:
                return kind
    return None


def horovod_built() -> str:
    """Return Horovod's version and what it was built with, such as "0.28.1 with MPI, Gloo; MPI is openmpi 4.1.8"."""
    kinds = [kind for kind in ("MPI", "Gloo", "NCCL") if getattr(hvd, f"{kind.lower()}_built")()]
    mpi = mpi_of_horovod()
    built = f"; MPI is {mpi} {version_of(mpi) or 'of the system'}" if mpi else ""
    return f"{version_of('horovod')} with {', '.join(kinds)}{built}"


def check_launcher() -> None:
    """UserError when Horovod was built for another MPI than the launcher's: each rank would train alone."""
    launcher, built = launcher_mpi(), mpi_of_horovod()
    if launcher is None or built is None or launcher == built:
        return
    instead = f"`{SRUN[built]}` or " if is_task_of_srun() and built == "openmpi" else ""
    own, other = "of that environment", "the other environment ({} sh run_train.sh)"
    if apptainer_image():  # which the host's launcher starts
        own, other = "of the host's " + FAMILIES[built], "an image with {} (docs/containers.md)"
    raise UserError(
        f"started by {launcher_name()}, but the Horovod of {sys.executable} was built for {LAUNCHERS[built]}: "
        f"start it with {instead}the {COMMANDS[built]} {own}, or take "
        + other.format(f"MPI={'intel' if launcher == 'mpich' else 'openmpi'}")
    )


def prepare_mpi() -> None:
    """Set what Open MPI reads when it starts: networks that lead nowhere, memory of others, and Slurm's PMIx."""
    leave_out_bridges()
    # All of its default but `put`, with which a rank's answer to its neighbour waits behind a gigabyte of its own data:
    # the two do not send at once, and an allreduce takes 1.5 or 2 times as long.
    os.environ.setdefault("OMPI_MCA_btl_tcp_flags", "send,inplace,need-ack,need-csum,hetero-rdma")
    # Ranks in user namespaces of their own cannot read each other's memory: Open MPI finds that out, with a warning.
    if is_launched_from_outside():
        os.environ.setdefault("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
    modes = os.environ.get("PMIX_SECURITY_MODE", "")
    if "native" in modes.split(","):  # a newer PMIx of Slurm offers others, of which Open MPI 4 complains
        os.environ["PMIX_SECURITY_MODE"] = "native"


def init_world(use_horovod: bool, alone: bool = True, ranks_per_patch: int = 1) -> World:
    """Start Horovod and return the ranks. A single process starts it only if `alone` is False.

    UserError: Horovod is missing; srun started ranks that do not know of each other; Horovod sees another number
    of ranks than the launcher started; or the ranks cannot be divided into groups of `ranks_per_patch`.
    """
    require_company()
    rank, launched = launcher_rank()
    PatchGroup.of(rank, launched, ranks_per_patch)
    if not use_horovod:
        if launched > 1:
            raise UserError(
                f"--no-horovod, but a launcher started {launched} ranks: they would train apart, take off "
                "--no-horovod or start one process"
            )
        return World()
    if launched == 1 and alone:
        return World()
    if hvd is None:
        raise UserError("Horovod is not installed: set up with `sh run_train.sh`, or start one process")
    check_launcher()
    prepare_mpi()
    if launched == 1:  # Open MPI's wheel does not start without its mpirun
        os.environ.update(HOROVOD_CONTROLLER="gloo", HOROVOD_CPU_OPERATIONS="gloo")
    sets = _process_sets(launched, ranks_per_patch)
    hvd.init(process_sets=sets)
    killed_rank.announce(rank)
    mine = sets[hvd.rank() // ranks_per_patch] if sets else hvd.global_process_set
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), True, ranks_per_patch, mine)
    if world.size != launched:
        raise UserError(
            f"the launcher started {launched} ranks, but Horovod sees {world.size}: it was built for another "
            f"MPI than this launcher's. Rank {rank} of {launched} runs {sys.executable}; take the mpirun or "
            "mpiexec.hydra of that environment"
        )
    return world


def _process_sets(ranks: int, ranks_per_patch: int) -> list[Any]:
    """Return Horovod's process set of each group of ranks that share a patch; none where one set would hold all or one.

    They are all there before the first graph is traced, for its ops have the number of a set in them.
    """
    if ranks_per_patch in (1, ranks):
        return []
    return [
        hvd.ProcessSet(list(range(start, start + ranks_per_patch)))
        for start in range(0, ranks, ranks_per_patch)
    ]
