"""Keeps what was found about slides in files, so that neither the next run nor another worker looks for it again.

The name of a file is a digest of what its content was found from: the paths, sizes and times of the files that were
read, the options that matter and the code that looked. So what is kept is never out of date: after a change it is not
found, and it is removed when it is old. A file gets its name when it is whole, and the last writer wins, so any number
of jobs may read and write at once, on NFS and Lustre too. (SQLite, and with it diskcache, needs locks that these may
not have.)

The folder is CACHE_DIR of the environment, which worker processes inherit, or a folder of the user's caches. If
CACHE_DIR is empty, nothing is kept. A folder that cannot be written costs no more than the time to look again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import shapely

from samplers.slides import stored_slide
from utils.ranks.launcher import launcher_rank

VARIABLE = "CACHE_DIR"
MAX_AGE = 60 * 24 * 3600  # seconds since a file was written, after which it is removed
_LIBRARIES = (np, cv2, shapely, imagecodecs)  # on whose versions it depends what is found
_PARTS_ELSEWHERE = (".vms", ".vmu", ".vsi")

log = logging.getLogger(__name__)


def folder() -> Path | None:
    """Return the folder of the files, None if nothing is kept. It need not be there."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return caches / "extended-fov-segmentation" / "slides"


def state_of(path: Path | None) -> list[str | int] | None:
    """Return what changes when a slide or a label changes: its path, and sizes and times of its files.

    Raises OSError if it is not there, or may have parts in other files that are not known here.
    """
    if path is None:
        return None
    if path.suffix.lower() in _PARTS_ELSEWHERE:
        raise OSError(f"{path}: has parts in other files")
    return [str(path.absolute()), *stored_slide.state_of(path)]


def name_of(kind: str, *sources: Any) -> str:
    """Return the name of a file whose content was found from `sources`, values that JSON can write."""
    text = json.dumps([_version(), *sources], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@functools.cache
def _version() -> str:
    """Return a digest of the code that looks at slides and of the libraries that it uses."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    digest.update(" ".join(library.__version__ for library in _LIBRARIES).encode())
    return digest.hexdigest()


def load(name: str) -> bytes | None:
    """Return the content of a file; None if it is not there or damaged."""
    place = folder()
    if place is None:
        return None
    try:
        return zlib.decompress((place / name).read_bytes())  # which compares a checksum
    except (OSError, zlib.error):
        return None


def save(name: str, content: bytes) -> None:
    """Keep the content of a file. If that fails, keep nothing from now on, and say so if this is the first rank."""
    place = folder()
    if place is None:
        return
    partial = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        number, partial = tempfile.mkstemp(prefix=".", dir=place)
        with open(number, "wb") as file:
            file.write(zlib.compress(content, 1))
        os.replace(partial, place / name)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        os.environ[VARIABLE] = ""
        if launcher_rank()[0] == 0:
            log.warning(
                "what is found about the slides cannot be kept, so the next run looks again: %s "
                "(CACHE_DIR names another folder)",
                error,
            )


def load_json(name: str) -> Any:
    """Return a value that `save_json` kept, None if there is none."""
    content = load(name)
    return None if content is None else json.loads(content)


def save_json(name: str, value: Any) -> None:
    save(name, json.dumps(value).encode())


def kept_array(name: str, find: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that was kept under a name, or what `find` returns, which is kept then.

    Where several processes of a node want it at once, one of them looks and the others wait for it.
    """
    found = _load_array(name)
    if found is not None:
        return found
    with _alone(name):
        found = _load_array(name)
        if found is None:
            found = find()
            content = io.BytesIO()
            np.save(content, found, allow_pickle=False)
            save(name, content.getvalue())
    return found


def _load_array(name: str) -> np.ndarray | None:
    content = load(name)
    if content is None:
        return None
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait until no other process of this node is here with the same name. The lock of a killed process is free."""
    if folder() is None:  # each has to look for itself, so nobody waits
        yield
        return
    # In the folder for temporary files, because the other one may be on a file system without locks.
    path = Path(tempfile.gettempdir()) / f".extended-fov-{os.getuid()}-{name}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            stack.callback(path.unlink, missing_ok=True)
        yield


def remove_old() -> None:
    """Remove the files that were written long ago: of slides that have changed, of older code, of killed writers."""
    place, now = folder(), time.time()
    with contextlib.suppress(OSError):
        for entry in os.scandir(place) if place is not None else ():
            if now - entry.stat().st_mtime > MAX_AGE:
                os.unlink(entry)
