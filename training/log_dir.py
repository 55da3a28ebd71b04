"""The folder of a run: it can be written, is made, and belongs to one run at a time."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from utils.cli import UserError
from utils.lock import lock_folder


def make_log_dir(options: argparse.Namespace) -> Path:
    """Make the folder of this run: the one asked for, or one that is named after the model and the time.

    A run with --debug begins anew: what an earlier one left is deleted. UserError if the folder cannot be made.
    """
    name = f"{options.model}_{options.img_size}_{time.strftime('%Y%m%d-%H%M%S')}"
    log_dir: Path = (options.log_dir or Path("logs") / name).absolute()
    try:
        if options.debug and (log_dir / "options.json").exists():
            shutil.rmtree(log_dir)
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--log_dir {log_dir} cannot be made: {error}") from error
    return log_dir


def lock_log_dir(log_dir: Path) -> None:
    """Keep other runs out of the folder, see `lock_folder`."""
    lock_folder(log_dir, "--log_dir")


def lock_run_to_go_on(options: argparse.Namespace) -> None:
    """Lock the folder of the run that these options go on with, if there is one, before anything of it is read.

    Later it may have gone on: a run that is about to end still writes its last checkpoint. UserError as `lock_log_dir`.
    """
    if options.log_dir is not None and not options.debug and (options.log_dir / "options.json").exists():
        lock_log_dir(options.log_dir)


def check_log_dir(options: argparse.Namespace) -> None:
    """Raise UserError if files cannot be written in the folder of the run. What was not there is not there after it."""
    log_dir: Path = (options.log_dir or Path("logs")).absolute()
    made: list[Path] = []
    try:
        made = [folder for folder in (log_dir, *log_dir.parents) if not folder.exists()]
        log_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir) as file:
            file.write(bytes(4096))  # a full disk still makes empty files
    except OSError as error:
        raise UserError(f"--log_dir {log_dir} cannot be written: {error}") from error
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
