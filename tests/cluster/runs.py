"""Runs of the clone on the cluster: what is trained, and how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cluster.host import wait_until
from training.checkpoint import latest_checkpoint, read_state
from training.resume import read_metrics

BIN = Path(sys.executable).parent
HYDRA = (BIN / "mpiexec.hydra").exists()  # MPI=intel sh run_tests.sh
KIND = "mpich" if HYDRA else "openmpi"
ENVIRONMENT = {
    "MPI": "intel" if HYDRA else "openmpi",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_USE_LEGACY_KERAS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def options(demo: Path, log_dir: Path, steps: int = 96) -> list[str]:
    words = (
        f"--data_sampler surf --img_size 128 --batch_size 2 --num_steps {steps} --val_split 0.34 --no_cuda "
        "--validation_patches 2 --log_every 8 --validate_every 10000000 --checkpoint_every 10000000 "
        "--freeze_bn 0 --mixed_precision float32"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    return [*words.split(), *map(str, folders)]


def last_step(log_dir: Path) -> int:
    """Return the last step that a run has logged, 0 if it has logged none."""
    if not (log_dir / "metrics.jsonl").exists():
        return 0
    return max((int(row["step"]) for row in read_metrics(log_dir)), default=0)


def saved_step(log_dir: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    path, _ = latest_checkpoint(log_dir / "checkpoints")
    return int(read_state(path)["step"]) if path else 0


def wait_until_it_trains(log_dir: Path, step: int = 8) -> None:
    wait_until(lambda: last_step(log_dir) >= step, f"the run in {log_dir} does not train")
