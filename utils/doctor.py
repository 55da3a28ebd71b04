"""Lists what there is to train with, and a line for each thing that is wrong.

    python -m utils.doctor                     this host
    mpirun -np 4 ... python -m utils.doctor    the ranks that a launcher starts, in one report (utils/checkup.py)

Exit code 0: all is well; 1: something is wrong. On one host TensorFlow is loaded in a process of its own, so that a
library that crashes is a line as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.cli import HelpFormatter, Parser
from utils.cpu import cpu_flags
from utils.probe import PACKAGES, container, version_of
from utils.ranks.launcher import COMMANDS, launcher_rank, lonely_tasks

PYTHONS = ((3, 10), (3, 13))
NAMES = {"mpi": "horovod's MPI", "mpi_library": "MPI library", "horovod": "horovod built with"}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def probe() -> dict[str, Any]:
    """Return what a process finds that loads everything, or {"crash": how} if it ends before."""
    done = subprocess.run(
        [sys.executable, "-m", "utils.probe"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {"crash": f"exit code {done.returncode}: {done.stderr.strip()[-500:]}"}


def launchers() -> dict[str, str]:
    found = {name: shutil.which(name) for name in ("mpirun", "mpiexec.hydra", "horovodrun", "srun")}
    return {name: path for name, path in found.items() if path}


def problems(found: dict[str, Any], versions: dict[str, str | None], has_nvidia: bool) -> Iterator[str]:
    """Yield each thing that is wrong, with what to do."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        yield f"Python {platform.python_version()}: TensorFlow 2.21 wants 3.10 to 3.13, set PYTHON= and run again"
    if "crash" in found:
        yield f"TensorFlow or Horovod crash when loaded ({found['crash']}): remove the environment, set up again"
        return
    for name in ("horovod", "vips", "openslide"):
        if str(found[name]).startswith("error"):
            yield f"{name} does not load ({found[name][6:]}): set up again with `sh run_train.sh`"
    if version_of("keras") and not versions["tf-keras"]:
        yield "tf-keras is missing: Horovod's optimizer does not work with Keras 3, set up again"
    if "MPI" not in str(found["horovod"]):
        yield "Horovod was built without MPI: remove its wheel from the cache and set up again"
    wanted = COMMANDS.get(found["mpi"])
    beside = Path(sys.executable).parent / (wanted or "")
    if wanted and not shutil.which(wanted) and not beside.exists():
        yield f"Horovod was built for {found['mpi']}, but {wanted} is not on PATH: load the MPI's module"
    if has_nvidia and not found["gpus"]:
        yield "there is an NVIDIA GPU that TensorFlow does not see: DEVICE=gpu sh run_train.sh, or use --no_cuda"
    if found["gpus"] and "NCCL" not in str(found["horovod"]):
        yield "Horovod was built without NCCL: gradients go through main memory, slower (load CUDA, then set up again)"


def report() -> Iterator[tuple[str, str]]:
    """Yield (name, value) of all that is looked at on this machine."""
    found, versions = probe(), {name: version_of(name) for name in PACKAGES}
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for name, version in versions.items():
        if version:
            yield name, version
    for name, value in found.items():
        yield NAMES.get(name, name), str(value)
    for name, path in launchers().items():
        yield name, path
    yield "container", container()
    cores = len(os.sched_getaffinity(0))
    yield "cores", f"{cores} of {os.cpu_count()} for this process"
    flags = cpu_flags()
    yield "CPU", ", ".join(flag for flag in CPU_FEATURES if flag in flags) or "no AVX2"
    lines = list(problems(found, versions, shutil.which("nvidia-smi") is not None))
    for line in lines:
        yield "WRONG", line
    if not lines:
        yield "all is well", "no problem found"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m utils.doctor",
        description="List what there is to train with, and what is wrong. Started by a launcher, as train.py would be, "
        "it looks at all ranks together.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--log_dir",
        type=Path,
        default=Path("logs"),
        help="folder of the run, which all hosts must see; looked at under a launcher",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    if max(launcher_rank()[1], lonely_tasks()) > 1:
        from utils.checkup import main_of_ranks

        return main_of_ranks(options.log_dir)
    return show(report())


def show(lines: Iterable[tuple[str, str]]) -> int:
    """Print (name, value) of each line as it comes. Return the exit code."""
    wrong = False
    for name, value in lines:
        wrong = wrong or name == "WRONG"
        print(f"{name:20} {value}", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
