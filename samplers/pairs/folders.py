"""Lists folders: the files of a format, and what else is there, so that nothing is left out without being named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from samplers.pairs.names import name_some
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import FOLDERS, folder_format

_SAME_FORMAT = {"tiff": "tif", "jpeg": "jpg", "json": "geojson"}
# Files with these endings lie beside slides and are none, so nobody misses them. All others are named.
_NO_SLIDES = (
    "txt md rst csv tsv json geojson xml yaml yml toml ini log pdf html "
    "xls xlsx md5 sha1 sha256 sh py qpproj qpdata db dat lock"
)
PATCHES = "patches"  # the folder of the preprocessing that has a folder of patches for each slide
_DEPTH = 3  # levels of subfolders in which slides are looked for


def listed(folder: Path) -> list[Path]:
    """Return the sorted contents of a folder. Raises DataError if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error


def files_of(folder: str | Path, format: str) -> list[Path]:
    """Return the slides or labels of a folder that have a format: see `is_of`.

    A link to nothing is one of them: it is named where it is opened. Raises DataError if the folder cannot be listed,
    or is itself a slide of this format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    wanted, content = same_format(format), listed(folder)
    if wanted in FOLDERS:
        loose = [path.name for path in content if same_format(path.suffix) == wanted and is_file(path)]
        if loose:
            raise DataError(
                f"{folder}: has {len(loose)} .{wanted} files, but each slide of this format is a folder: make one for "
                f"the files of each slide, and give the folder that has them all ({name_some(loose)})"
            )
    return [path for path in content if is_of(path, [format])]


def slides_of(folder: str | Path, format: str) -> list[Path]:
    """Return the files of a folder, and those of a folder per slide that the preprocessing has made in it.

    Raises DataError if a folder cannot be listed.
    """
    patches = Path(folder) / PATCHES
    inner = _subfolders(patches) if patches.is_dir() else []
    return [file for path in (folder, *inner) for file in files_of(path, format)]


def files_below(folders: Sequence[Path], format: str) -> list[Path]:
    """Return the files of the folders and of their subfolders, such as center_0 or patient_000."""
    there = [folder for folder in folders if folder.is_dir()]
    inner = [path for folder in there for path in _subfolders(folder) if path not in there]
    inner = [path for path in inner if not is_of(path, [format])]
    return [file for folder in (*there, *inner) for file in files_of(folder, format)]


def is_of(path: Path, formats: Collection[str]) -> bool:
    """Return whether a path is a slide or a label of one of these formats (`same_format`), and not hidden.

    It is a file with this suffix in any case, or a folder if that is what a slide of this format is.
    """
    wanted = {same_format(format) for format in formats}
    if same_format(path.suffix) in wanted - {*FOLDERS} and is_file(path):
        return True
    return not wanted.isdisjoint(FOLDERS) and folder_format(path) in wanted


def is_file(path: Path) -> bool:
    """Return whether a path is a file that is not hidden, or a link that leads nowhere and was to be one."""
    if path.name.startswith("."):
        return False
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except OSError:  # behind a folder that must not be entered: opening it says so
        return True


def same_format(suffix: str) -> str:
    """Return a format's one name: "tif" for `.TIFF`."""
    suffix = suffix.lower().lstrip(".")
    return _SAME_FORMAT.get(suffix, suffix)


def left_out(
    folder: Path, used: Iterable[Path], formats: Collection[str], option: str, depth: int = 0
) -> list[str]:
    """Return a warning for the other files of a folder that may be slides or labels, and one for those in subfolders.

    `formats` were asked for by `option`; `depth` is 1 where the folder's subfolders have been searched as well.
    """
    known, warnings = {*used}, []
    wanted = {same_format(format) for format in formats}
    folders = [folder]
    for _ in range(depth):
        folders += [
            path for inner in folders for path in _subfolders(inner) if path not in {*folders, *known}
        ]
    others = [
        path for inner in folders for path in listed(inner) if path not in known and _may_be_slide(path)
    ]
    if others:
        endings = Counter(_ending(path) for path in others)
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        warnings.append(
            f"{folder}: {len(others)} other files are left out ({counts}; {option}): "
            f"{name_some(path.name for path in others)}"
        )
    searched = {file.parent for file in known}
    searched |= {path.parent for path in searched if path.parent.name == PATCHES}
    seen = {*folders, *searched, *known, *others}
    deeper = [path for inner in folders for path in _subfolders(inner) if path not in seen]
    holding = [path for path in deeper if _holds(path, wanted, _DEPTH)]
    if holding:
        warnings.append(
            f"{folder}: {len(holding)} subfolders with files of this format are not searched: {name_some(holding)}"
        )
    without = [path for path in deeper if path not in holding] if wanted == {"dcm"} else []
    if without:
        warnings.append(
            f"{folder}: {len(without)} subfolders are no slides (no .dcm files in them): {name_some(without)}"
        )
    return warnings


def _may_be_slide(path: Path) -> bool:
    if is_file(path):
        return path.suffix.lower().lstrip(".") not in _NO_SLIDES.split()
    return folder_format(path) is not None


def _ending(path: Path) -> str:
    """Return how a slide is called that is left out: by its file's ending, or by the format of its folder."""
    return path.suffix.lower() or "no ending" if is_file(path) else f".{folder_format(path)} in folders"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in listed(folder) if path.is_dir() and not path.name.startswith(".")]
    except (DataError, OSError):
        return []


def _holds(folder: Path, wanted: Collection[str], depth: int) -> bool:
    """Return whether a folder, or one in it, has a file of a format."""
    try:
        with os.scandir(folder) as entries:
            inner = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                format = same_format(os.path.splitext(entry.name)[1])
                if format in wanted and entry.is_dir() == (format == "zarr"):
                    return True
                if format != "zarr" and entry.is_dir():  # there may be very many files in a Zarr
                    inner.append(Path(entry.path))
    except OSError:
        return False
    return depth > 1 and any(_holds(path, wanted, depth - 1) for path in sorted(inner))
