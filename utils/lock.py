"""Folders that belong to one program at a time."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import IO

from utils.cli import UserError
from utils.files import output_errors

LOCK_FILE = ".lock"

_locks: dict[Path, IO[str]] = {}  # of the folders of this process, open as long as it runs


def lock_folder(folder: Path, option: str) -> None:
    """Keep other programs out of the folder of an option until this process ends, however it ends.

    It is made if it is not there. UserError: it cannot be made, or a program is in it. A file system without locks
    keeps nobody out.
    """
    folder = folder.absolute()
    if folder in _locks:
        return
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"{option} {folder} belongs to a run that goes on ({file.read().strip()}): stop it, or name another folder"
        ) from error
    except OSError:
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _locks[folder] = file
