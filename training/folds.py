"""The folds of a cross-validation, some of them at a time: what run_folds.sh runs once there is an environment.

The ranks of a job are divided into groups. Each trains a fold and predicts its slides, with run_train.sh and
run_predict.sh, and takes the next fold when it is free; one fold after the other is what one group does. What stops or
fails goes on with the same command, for finished folds end at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TextIO

from utils.cli import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Parser,
    UserError,
    positive_int,
    report_user_error,
)
from utils.ranks.allocation import Group, divide, hosts_of_slurm, read_hosts
from utils.ranks.host_share import Share, find_share

PROGRAM = "run_folds.sh"
# What comes, and what the scripts get of it; they have sessions of their own, so that nothing comes to them twice.
SIGNALS = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,  # of Slurm, before the time is up
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
LAST_LINES = 10  # of the output of a fold that failed


class Folds:
    """Folds that wait, run and are finished. `run` returns the exit code."""

    def __init__(self, options: argparse.Namespace, words: Sequence[str], numbers: Sequence[int]) -> None:
        self.count, self.log_dir, self.words = options.folds, options.log_dir, words
        self.waiting, self.number, self.finished = deque(numbers), len(numbers), 0
        self.running: dict[int, asyncio.subprocess.Process] = {}
        self.signals: set[signal.Signals] = set()
        self.failure = EXIT_DONE  # the exit code of the first fold that did not end well
        self.to_files = options.at_once > 1

    async def run(self, groups: Sequence[Group]) -> int:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                loop.add_signal_handler(number, self.stop, number)
        await asyncio.gather(*map(self.work, groups))
        if signal.SIGINT in self.signals:
            return EXIT_INTERRUPTED
        stopped = self.signals and self.finished < self.number
        return self.failure or (EXIT_STOPPED if stopped else EXIT_DONE)

    async def work(self, group: Group) -> None:
        """Run folds in this group until there are none, or no more are to be started."""
        while self.waiting and not self.signals and not self.failure:
            fold = self.waiting.popleft()
            where = f": {group}, output in {self.output(fold)}" if self.to_files else ""
            self.say(f"fold {fold} of {self.count}{where}")
            start = time.monotonic()
            code = await self.train_and_predict(fold, group.environment())
            passed = duration(time.monotonic() - start)
            if code == EXIT_DONE:
                self.finished += 1
                self.say(
                    f"fold {fold} is finished after {passed}, {self.finished} of {self.number} folds are"
                )
            elif code == EXIT_STOPPED:
                self.say(f"fold {fold} has stopped after {passed}, the same command goes on")
                if not self.signals:  # by its --time_limit
                    self.failure = self.failure or code
            else:
                self.report(fold, code)
                self.failure = self.failure or code

    async def train_and_predict(self, fold: int, environment: Mapping[str, str]) -> int:
        """Return the exit code of one fold: EXIT_DONE also with bad slides, EXIT_STOPPED if a signal has stopped it."""
        folder = f"{self.log_dir}/fold_{fold}"
        words = [*self.words, "--folds", str(self.count), "--fold", str(fold), "--log_dir", folder]
        code = await self.call(fold, environment, "run_train.sh", *words)
        if self.signals:  # a script that has no handler yet, a launcher that ends its ranks
            return EXIT_STOPPED if code in (EXIT_DONE, EXIT_STOPPED) or code > 128 else code
        if code != EXIT_DONE:
            return code
        if self.to_files:
            self.say(f"fold {fold} is trained, its slides are predicted")
        words = [
            "--model_path",
            folder,
            "--slide_path",
            f"{folder}/splits.json",
            "--output",
            f"{folder}/predictions",
        ]
        code = await self.call(
            fold, environment, "run_predict.sh", *words, *os.environ.get("PREDICT", "").split()
        )
        if self.signals:
            return EXIT_STOPPED if code else EXIT_DONE
        return EXIT_DONE if code == EXIT_FAILED else code  # bad slides are named and do not end the others

    async def call(self, fold: int, environment: Mapping[str, str], script: str, *words: str) -> int:
        """Return the exit code of a script, that of a shell if a signal has ended it."""
        # The job is put back into the queue when all folds have their checkpoints, not by the first one.
        variables = {**os.environ, **environment, "REQUEUE": ""}
        with self.output_of(fold) as output:
            process = await asyncio.create_subprocess_exec(
                *("sh", script, *words), env=variables, stdout=output, stderr=output, start_new_session=True
            )
            self.running[fold] = process
            for number in self.signals:  # while it was being started
                self.send(process, number)
            code = await process.wait()
            del self.running[fold]
        return 128 - code if code < 0 else code

    def stop(self, number: signal.Signals) -> None:
        """Pass a signal on to all folds that run, and start no others."""
        if self.to_files and not self.signals:
            again = "; Ctrl-C again ends them at once" if number == signal.SIGINT else ""
            self.say(f"{number.name}: the folds that run stop with a checkpoint after their steps{again}")
        self.signals.add(number)
        for process in self.running.values():
            self.send(process, number)

    def send(self, process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(SIGNALS[number])

    def output(self, fold: int) -> Path:
        return Path(self.log_dir, "output", f"fold_{fold}.log")

    @contextlib.contextmanager
    def output_of(self, fold: int) -> Iterator[IO[bytes] | None]:
        """Yield the file for the output of a fold; None, the terminal, where it is the only one at a time."""
        if not self.to_files:
            yield None
            return
        with self.output(fold).open("ab") as file:
            yield file

    def say(self, text: str, file: TextIO = sys.stdout) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason to leave the folds alone
            print(f"{PROGRAM}: {text}", file=file, flush=True)

    def report(self, fold: int, code: int) -> None:
        """Name a fold that failed, and say what becomes of the others."""
        lines = [f"fold {fold} failed with exit code {code}"]
        if self.to_files:
            end = self.output(fold).read_text(errors="replace").splitlines()[-LAST_LINES:]
            lines = [f"{lines[0]}, the end of {self.output(fold)}:", *(f"    {line}" for line in end)]
            if self.running and not self.signals:
                folds = f"fold{'s' if len(self.running) > 1 else ''} {', '.join(map(str, self.running))}"
                lines.append(f"{PROGRAM}: {folds} will be finished, no other one is started")
        self.say("\n".join(lines), sys.stderr)


def duration(seconds: float) -> str:
    """Return H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def fold_count(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} is less than 2")
    return int(text)


def at_once(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"AT_ONCE={text} is no number from 1 on")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Train one model per fold, predict the slides that it has not seen, and put all into one table. "
        "All other options go to train.py. The head of run_folds.sh describes variables of the environment.",
        allow_abbrev=False,
    )
    add, hidden = parser.add_argument, argparse.SUPPRESS
    add("--folds", type=fold_count, required=True, metavar="N", help="number of folds")
    add("--log_dir", required=True, metavar="FOLDER", help="folder for fold_1, fold_2, … and the table")
    # run_folds.sh gives these: AT_ONCE, and the ranks and hosts of the job.
    add("--at_once", type=at_once, default=1, help=hidden)
    add("--ranks", type=positive_int, default=1, help=hidden)
    add("--hosts", default="", help=hidden)
    # Refused.
    add("--fold", help=hidden)
    add("--debug", action="store_true", help=hidden)
    return parser


def numbers_of(options: argparse.Namespace, environment: Mapping[str, str]) -> list[int]:
    """Return the folds to run: all, or the one of this job in an array of Slurm. UserError: there is no such fold."""
    if options.fold is not None:
        raise UserError("--fold is given by this script: leave it out (run_train.sh takes it)")
    if options.debug:
        raise UserError("--debug is for one fold: sh run_train.sh --debug --folds N --fold 1 ...")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    if task is None:
        return list(range(1, options.folds + 1))
    if not 1 <= int(task) <= options.folds:
        raise UserError(f"job {task} of the array, but --folds {options.folds}: --array=1-{options.folds}")
    return [int(task)]


def groups_of(options: argparse.Namespace, folds: int, environment: Mapping[str, str]) -> list[Group]:
    """Return the groups of ranks that run a fold each. UserError: they cannot be made."""
    if options.at_once == 1:
        return divide([], options.ranks, 1)
    if "SLURM_ARRAY_TASK_ID" in environment:
        raise UserError(
            f"AT_ONCE={options.at_once}, but each job of an array has one fold: leave one of them out"
        )
    if options.at_once > folds:
        raise UserError(f"AT_ONCE={options.at_once} is more than --folds {folds}")
    if environment.get("HOST_SHARE"):
        raise UserError("AT_ONCE gives each fold its HOST_SHARE: leave that out")
    hosts = read_hosts(options.hosts) or hosts_of_slurm(environment)
    groups = divide(hosts, options.ranks, options.at_once)
    if not hosts:  # all are here; hosts of a job look for themselves
        find_share(Share(1, options.at_once), options.no_cuda)
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    options, words = build_parser().parse_known_args(argv)
    options.no_cuda = "--no_cuda" in words
    try:
        numbers = numbers_of(options, os.environ)
        groups = groups_of(options, len(numbers), os.environ)
        folds = Folds(options, words, numbers)
        if folds.to_files:
            make_folder(folds.output(1).parent)
    except UserError as error:
        return report_user_error(error, PROGRAM)
    code = asyncio.run(folds.run(groups))
    if code == EXIT_DONE:
        more = ["--if_finished"] * ("SLURM_ARRAY_TASK_ID" in os.environ)
        table = [sys.executable, "-m", "evaluation.folds", "--log_dir", options.log_dir, *more]
        os.execv(table[0], table)
    if not folds.signals & {signal.SIGTERM, signal.SIGHUP}:  # scancel: the job is not to come back
        subprocess.run(["sh", "-euc", '. utils/launch.sh; requeue_job "$0"', str(code)], check=False)
    return code


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--log_dir: {folder} cannot be made: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
