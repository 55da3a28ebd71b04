"""Reads slides in OME-Zarr (OME-NGFF 0.4 and 0.5): a folder of arrays, one for each level, in chunks.

TensorStore reads the arrays. It is not installed by default (21 MB). https://ngff.openmicroscopy.org
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samplers.slides.errors import DataError, ReadError
from samplers.slides.spacing import micrometres, plausible
from samplers.slides.tiff_reader import one_line, region_name

INSTALL = ".venv/bin/pip install tensorstore==0.1.78"
_CACHE_BYTES = 64 << 20  # decoded chunks of all slides together
_LEVEL_BYTES = 64 << 10  # of an open array
_METADATA = (
    "zarr.json",
    ".zattrs",
    ".zarray",
)  # of a group or an array in Zarr 3; of a group, of an array in Zarr 2
_COLOURS = ["FF0000", "00FF00", "0000FF"]


class Image(NamedTuple):
    """What the metadata say of an image."""

    axes: tuple[str, ...]  # of each level's array, such as ("t", "c", "z", "y", "x")
    levels: tuple[Path, ...]  # the largest first
    spacing: float | None  # µm/px


def image_of(folder: Path) -> Image:
    """Return the image of a folder, of bioformats2raw's several ones the first. Raises DataError if there is none."""
    attributes = _attributes(folder)
    if "multiscales" not in attributes and "bioformats2raw.layout" in attributes:
        folder = folder / "0"
        attributes = _attributes(folder)
    try:
        multiscale = attributes["multiscales"][0]
        axes = tuple(axis["name"] for axis in multiscale["axes"])
        x = axes.index("x")
        levels = tuple(folder / level["path"] for level in multiscale["datasets"])
        unit = micrometres(multiscale["axes"][x].get("unit", ""))
        scale = _scale(multiscale["datasets"][0], x) * _scale(multiscale, x)
        colours = [channel.get("color", "") for channel in attributes.get("omero", {}).get("channels", ())]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder}: is no image of OME-NGFF 0.4 or 0.5: {error!r}") from error
    if any(
        Path(level["path"]).is_absolute() or ".." in Path(level["path"]).parts
        for level in multiscale["datasets"]
    ):
        raise DataError(f"{folder}: names levels that are not in it")
    if any(colours) and [str(colour).upper() for colour in colours] != _COLOURS:
        raise DataError(
            f"{folder}: has channels of the colours {', '.join(map(str, colours))}, RGB is needed"
        )
    return Image(axes, levels, plausible(scale, unit))


def metadata_files(folder: Path) -> list[Path]:
    """Return the files that describe an image. Chunks may be very many, so they are not looked at."""
    try:
        groups = [folder, folder / "0", *image_of(folder).levels]
    except DataError:
        groups = [folder]
    files = dict.fromkeys(group / name for group in groups for name in _METADATA)
    return [file for file in files if file.is_file()]


class ZarrReader:
    """Reads the levels of a slide with TensorStore. Several threads may read at once.

    Attributes: `sizes` of the levels ((width, height), …); `spacing` in µm/px, None if it is not known. A chunk that is
    not there has the fill value, as the format has it. Raises DataError if an array is missing or is not uint8 RGB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        image = image_of(path)
        self.spacing = image.spacing
        self._levels = [_opened(path, level, image.axes) for level in image.levels]
        self.sizes = [(int(level.shape[1]), int(level.shape[0])) for level in self._levels]
        if sorted(self.sizes, reverse=True) != self.sizes:
            raise DataError(f"{path}: its levels are not in the order of their sizes")
        self.held_bytes = _LEVEL_BYTES * len(self._levels)

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read a region, see `TiffReader.fetch`."""
        try:
            found = self._levels[level][y : y + height, x : x + width].read().result()
        except Exception as error:  # TensorStore raises ValueError, OSError and others
            region = region_name(x, y, width, height, level)
            raise ReadError(f"{self.path}: {region}: {_reason(error)}") from error
        return np.ascontiguousarray(found)

    def close(self) -> None:
        self._levels = []


def _attributes(folder: Path) -> dict[str, Any]:
    for name in _METADATA[:2]:
        try:
            content = json.loads((folder / name).read_bytes())
            return dict(content["attributes"]["ome"] if name == "zarr.json" else content)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{folder}: {name} cannot be read: {error!r}") from error
    raise DataError(f"{folder}: has no zarr.json or .zattrs, so it is no OME-Zarr")


def _scale(item: dict[str, Any], axis: int) -> float:
    """Return the product of what the transformations scale an axis by."""
    scales = [part["scale"] for part in item.get("coordinateTransformations", ()) if part["type"] == "scale"]
    return float(np.prod([float(scale[axis]) for scale in scales]))


def _opened(folder: Path, array: Path, axes: Sequence[str]) -> Any:
    """Return an open array with the axes (y, x, c)."""
    tensorstore = _tensorstore(folder)
    if not any((array / name).is_file() for name in ("zarr.json", ".zarray")):
        raise DataError(f"{folder}: has no array {array.name}, which is one of its levels")
    driver = "zarr3" if (array / "zarr.json").is_file() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{array}/"}}
    try:
        found = tensorstore.open(spec, read=True, context=_context(tensorstore)).result()
    except Exception as error:
        raise DataError(f"{folder}: {array.name} cannot be opened: {_reason(error)}") from error
    shape = dict(zip(axes, found.shape))
    others = [f"{size} × {name}" for name, size in shape.items() if name not in "cyx" and size > 1]
    if found.dtype != tensorstore.uint8 or len(found.shape) != len(axes) or shape.get("c") != 3 or others:
        what = ", ".join(f"{name} {size}" for name, size in shape.items())
        raise DataError(f"{folder}: {array.name} is {found.dtype.name} ({what}), RGB of 8 bits is needed")
    flat = found[tuple(slice(None) if name in "cyx" else 0 for name in axes)]
    left = [name for name in axes if name in "cyx"]
    return flat.transpose([left.index(name) for name in "yxc"])


def _reason(error: Exception) -> str:
    """Return what TensorStore says of an error, without its specification and the lines of its sources."""
    return one_line(error).partition(" [")[0]


def _tensorstore(folder: Path) -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise DataError(
            f"{folder}: OME-Zarr is read with TensorStore, which is missing: {INSTALL}"
        ) from error
    return tensorstore


_shared_context: list[Any] = []


def _context(tensorstore: Any) -> Any:
    if not _shared_context:
        # One thread decodes: the workers are processes.
        limits = {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}, "data_copy_concurrency": {"limit": 1}}
        _shared_context.append(tensorstore.Context(limits))
    return _shared_context[0]
