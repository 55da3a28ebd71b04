"""What the programs' command lines have in common: who is asked, types of options, errors and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import NoReturn

import psutil

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 75
NO_ROOM = "{}. Make room, and the same command goes on"  # of the error


class UserError(ValueError):
    """Something that the user has to mend: the message says what. Ends the program with exit code 2."""


def launcher_rank() -> tuple[int, int]:
    """(rank, size) as the launcher's environment tells them, (0, 1) without a launcher."""
    for rank, size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def terminal_columns() -> int:
    """Width of the terminal that shows this process's stderr, 0 if none does.

    A launcher's ranks write into its pipes: then it is the launcher's terminal, where it runs on this node.
    """
    if sys.stderr.isatty():
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    for process in psutil.Process().parents() if launcher_rank()[1] > 1 else []:
        try:
            path = os.readlink(f"/proc/{process.pid}/fd/2")
            if path.startswith("pipe:"):
                continue  # between the rank and the launcher
            with open(path) as terminal:
                return os.get_terminal_size(terminal.fileno()).columns or 80
        except OSError:  # a file, or another user's
            return 0
    return 0


def show_warnings() -> None:
    """What the samplers log goes to stderr, of several ranks with the rank before it."""
    rank, size = launcher_rank()
    prefix = f"[rank {rank}] " if size > 1 else ""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}warning: %(message)s"))
    logging.getLogger("samplers").handlers = [handler]


COMMANDS = {"openmpi": "mpirun", "mpich": "mpiexec.hydra"}
LAUNCHERS = {"openmpi": "Open MPI's mpirun", "mpich": "MPICH's or Intel MPI's mpiexec.hydra"}


def launcher_mpi() -> str | None:
    """Whose launcher started this process, a key of LAUNCHERS; None: none, or none of an MPI."""
    if os.environ.get("HOROVOD_CONTROLLER") == "gloo":  # horovodrun --gloo
        return None
    for variable, mpi in (("OMPI_COMM_WORLD_SIZE", "openmpi"), ("PMI_SIZE", "mpich")):
        if variable in os.environ:
            return mpi
    return None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of which only rank 0 speaks; the launcher ends all ranks when one has ended."""

    def error(self, message: str) -> NoReturn:
        sys.exit(report_user_error(UserError(f"{message} (all options: --help)"), self.prog))


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


def non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def hours_minutes(text: str) -> int:
    """Seconds of HH:MM."""
    hours, colon, minutes = text.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and int(minutes) < 60):
        raise argparse.ArgumentTypeError(f"{text} is not HH:MM")
    return 3600 * int(hours) + 60 * int(minutes)


def step_range(text: str) -> tuple[int, int]:
    """(START, STOP) of START:STOP."""
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text} is not START:STOP with START < STOP")
    return int(start), int(stop)


def report_user_error(error: UserError, program: str) -> int:
    """Rank 0 says what is wrong; the others give it the time, since a launcher ends all when one has ended."""
    if launcher_rank()[0] == 0:
        sys.stderr.write(f"{program}: error: {error}\n")
        sys.stderr.flush()
    else:
        time.sleep(2)
    return EXIT_USAGE
