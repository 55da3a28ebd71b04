"""Says what a slide on the disk is: a file (an MRXS with a folder beside it), or a folder of DICOM files or OME-Zarr.

Nothing else needs to know which of them it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from samplers.slides.errors import DataError
from samplers.slides.ome_zarr import metadata_files
from samplers.slides.stored_file import require_file

FOLDERS = ("dcm", "zarr")  # formats of which a slide is a folder
_ENDINGS = {"tif", "tiff", "svs", "ndpi", "mrxs", "scn", "bif", "vms", "png", "jpg", "jpeg", "bmp", "zarr"}


def folder_format(path: Path) -> str | None:
    """Return which of FOLDERS a folder is one slide of: "zarr" by its name, "dcm" if it has .dcm files; else None."""
    if path.name.startswith(".") or not path.is_dir():
        return None
    if path.suffix.lower() == ".zarr":
        return "zarr"
    try:
        return "dcm" if _instances(path) else None
    except OSError:
        return None


def slide_name(path: Path) -> str:
    """Return the name of a slide, which its label has and all that is made of it: its file's without the ending.

    A folder has the whole name, because a DICOM series is often called by numbers with dots.
    """
    ending = path.suffix.lower().lstrip(".")
    is_folder = ending and ending not in _ENDINGS and path.is_dir()
    return path.name if is_folder else path.stem


def parts_of(path: Path) -> list[Path]:
    """Return the files that a slide consists of; of OME-Zarr those with its description; of a label it is itself.

    OSError: it cannot be listed.
    """
    if path.suffix.lower() == ".mrxs":
        return [path, *sorted(path.with_suffix("").iterdir())]
    if not path.is_dir():
        return [path]
    return metadata_files(path) if folder_format(path) == "zarr" else _instances(path)


def size_of(path: Path) -> int:
    """Return the bytes of a slide or a label, 0 if it cannot be looked at. Large slides are worked on first."""
    try:
        return sum(part.stat().st_size for part in parts_of(path))
    except OSError:
        return 0


def state_of(path: Path) -> list[int]:
    """Return sizes and times (ns) of a slide's files, by which it is known whether it has changed.

    OSError: it is not there.
    """
    states = [part.stat() for part in parts_of(path)]
    return [number for state in states for number in (state.st_size, state.st_mtime_ns)]


def require_slide(path: Path) -> list[Path]:
    """Return the files of a slide. Raises DataError if it is not there, or has nothing in it."""
    if not path.is_dir():
        require_file(path)
        if path.suffix.lower() == ".dcm":
            raise DataError(
                f"{path}: is one file of a DICOM slide, which is a folder with the files of one series: give the "
                "folder, and make one for each slide"
            )
        return [path]
    try:
        parts = parts_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed: {error}") from error
    if not parts and folder_format(path) != "zarr":
        raise DataError(f"{path}: is a folder without .dcm files")
    return parts


def _instances(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(".dcm") and not entry.name.startswith(".")
        ]
    return [folder / name for name in sorted(names)]
