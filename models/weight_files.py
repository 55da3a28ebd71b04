"""Finds the weights that a path means, and tells which model they are of, without TensorFlow."""

from __future__ import annotations

import mmap
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.catalog import MODELS
from utils.cli import UserError

if TYPE_CHECKING:
    import numpy as np

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # members of a .keras archive
# A member of an archive may be this many times as long as its compressed bytes. Weights hardly become shorter by
# compression, but an optimizer's zeros do.
MAX_EXPANSION = 50


class WeightsError(UserError):
    """Weights that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Stored:
    """A variable in a file."""

    key: str  # in the file; a variable can have more than one name
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def find_weights(path: str | Path) -> Path:
    """Return the Keras file, or the prefix of the TensorFlow checkpoint, that `path` means.

    `path` is such a file or prefix, or a folder that holds one: an exported model, a folder with a file named
    `checkpoint` (its latest), with a single checkpoint or Keras file, or with a single such folder in it.
    WeightsError if there is none, or more than one.
    """
    path = Path(path)
    if path.is_file():
        return _prefix(path) if re.search(r"\.(index|data-\d+-of-\d+)$", path.name) else path
    if _is_prefix(path):
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file, folder or checkpoint")
    found = _in_folder(path)
    if not found:
        found = [
            weights for folder in sorted(path.iterdir()) if folder.is_dir() for weights in _in_folder(folder)
        ]
    if len(found) != 1:
        names = ", ".join(str(weights) for weights in found[:4]) or "none"
        raise WeightsError(f"{path}: one file of weights is wanted (checkpoint, .h5, .keras), found {names}")
    return found[0]


def guess_model(path: str | Path) -> str | None:
    """Return which model the weights at `path` belong to, by layer names; None if they name no known model.

    Reads bytes only: HDF5 and TensorFlow's checkpoints keep names uncompressed. Keras-applications files of
    EfficientNet say nothing about an EfficientDet: None. WeightsError as `find_weights`.
    """
    weights = find_weights(path)
    for file in [weights] if weights.is_file() else sorted(weights.parent.glob(f"{weights.name}.*")):
        try:
            found = _model_of_file(file)
        except OSError as error:
            raise WeightsError(f"{file}: cannot be read ({error})") from error
        if found is not None:
            return found
    return None


def read_member(file: Path, name: str) -> bytes:
    """Return a member of a zip archive, read into memory: nothing is unpacked to a path that the archive names.

    WeightsError: there is no such member, it is damaged or encrypted, or it becomes too long when unpacked.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = min(archive.getinfo(name).compress_size, file.stat().st_size)  # the archive may claim more
            with archive.open(name) as member:
                content = member.read(MAX_EXPANSION * size + 1)
    except KeyError as error:
        raise WeightsError(f"{file}: is a zip archive without {name}, so it is no .keras file") from error
    # zipfile raises the last two for encryption and for ways of compression that it does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"{file}: {name} in it cannot be read ({error})") from error
    if len(content) > MAX_EXPANSION * size:
        raise WeightsError(
            f"{file}: {name} in it has {size} bytes, which unpack to more than {MAX_EXPANSION} times as many: "
            "weights do not, so it is not read"
        )
    return content


def _model_of_file(file: Path) -> str | None:
    if zipfile.is_zipfile(file):  # .keras
        return _model_in(read_member(file, CONFIG))
    if file.stat().st_size == 0:  # mmap wants a byte at least
        return None
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _model_in(content)


def _model_in(content: bytes | mmap.mmap) -> str | None:
    if re.search(rb"entry_flow_conv1_1", content):
        return "deeplab"
    backbone = re.search(rb"efficientnet-b(\d)", content)
    name = f"effdetd{backbone.group(1).decode()}" if backbone else ""
    return name if name in MODELS else None


def _in_folder(folder: Path) -> list[Path]:
    """Return the weights in this folder, of the best kind that there is."""
    if (folder / "saved_model.pb").is_file():
        return [folder / "variables" / "variables"]
    state = folder / "checkpoint"
    if state.is_file():
        latest = re.search(r'^model_checkpoint_path: "(.+)"', state.read_text(), re.MULTILINE)
        # The path may be absolute and of another machine: the file's name in this folder is what counts.
        if latest and _is_prefix(folder / Path(latest.group(1)).name):
            return [folder / Path(latest.group(1)).name]
    checkpoints = [_prefix(index) for index in sorted(folder.glob("*.index"))]
    return checkpoints or [file for file in sorted(folder.iterdir()) if file.suffix in KERAS_SUFFIXES]


def _is_prefix(path: Path) -> bool:
    return path.with_name(f"{path.name}.index").is_file()


def _prefix(path: Path) -> Path:
    return path.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name))
