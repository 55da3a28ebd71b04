"""Shared by the programs' command lines: types of options, help, errors and exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any, NoReturn

from utils.ranks.launcher import is_first_process, launcher_rank

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED, EXIT_STALLED, EXIT_INTERRUPTED = 0, 1, 2, 75, 76, 130
NO_ROOM = "{}. Make room, and the same command goes on"  # of the error


class UserError(ValueError):
    """The user has to mend something: the message says what. Ends the program with exit code 2, without traceback."""


class RunError(RuntimeError):
    """A run failed for a reason that its message explains. Ends the program with exit code 1, without traceback."""


def show_warnings() -> None:
    """Print what is logged about slides and labels to stderr, with the rank before it where there are several."""
    rank, size = launcher_rank()
    prefix = f"[rank {rank}] " if size > 1 else ""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}warning: %(message)s"))
    packages = ("samplers", "evaluation")
    for package in packages:
        logging.getLogger(package).handlers = [handler]
    if not logging.root.handlers:
        # As without a handler, what others warn of is printed. But where there is none, absl makes one as soon as
        # TensorFlow writes a checkpoint, and then ours would be printed twice.
        others = logging.StreamHandler()
        others.setLevel(logging.WARNING)
        others.addFilter(lambda record: record.name.partition(".")[0] not in packages)
        logging.root.addHandler(others)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help and errors only rank 0 prints."""

    def print_help(self, file: Any = None) -> None:
        if launcher_rank()[0] == 0:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        sys.exit(report_user_error(UserError(f"{message} (all options: --help)"), self.prog))


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of an option after its help, once, and nothing for an option that has none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        empty = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        shown = action.option_strings and not empty
        return f"{text} (default: %(default)s)" if shown and "(default:" not in text else text


def random_seed(text: str) -> int:
    """Return a seed that numpy, Python and TensorFlow all take."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return value


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
    """Return the seconds of HH:MM."""
    hours, colon, minutes = text.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and int(minutes) < 60):
        raise argparse.ArgumentTypeError(f"{text} is not HH:MM")
    return 3600 * int(hours) + 60 * int(minutes)


def step_range(text: str) -> tuple[int, int]:
    """Return (START, STOP) of START:STOP."""
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text} is not START:STOP with START < STOP")
    return int(start), int(stop)


def report_user_error(error: UserError, program: str) -> int:
    """Print the error on rank 0. The others wait for it, since a launcher ends all ranks when one has ended."""
    if is_first_process():
        sys.stderr.write(f"{program}: error: {error}\n")
        sys.stderr.flush()
    else:
        time.sleep(2)
    return EXIT_USAGE
