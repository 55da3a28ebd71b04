"""One host of the tests: namespaces with a network of its own, and the programs that run on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 300  # seconds for anything that starts or ends; a loaded machine is slow
# The first process of a host: it waits, and lets the kernel take away processes whose parents have ended.
FIRST = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    signal.pause()
"""


def search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Host:
    """One host: `run` and `start` start programs on it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        kernel = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child"]
        spaces = ["--net", "--uts", "--pid", "--fork", "--mount", "--mount-proc"]
        self._outside = subprocess.Popen([*kernel, *spaces, sys.executable, "-c", FIRST])
        wait_until(lambda: self._first(), f"{name} does not start")
        self.pid = self._first()
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")
        self.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        for path in ("sshd", "munge"):
            self.run("mkdir", "-m", "755", f"/run/{path}")
        # By this number UCX, and so MPICH, tells whether two ranks are on one host.
        (folder / f"boot-{name}").write_text(f"{uuid.uuid4()}\n")
        for source, target in (
            ("hosts", "/etc/hosts"),
            ("ssh/config", "/etc/ssh/ssh_config"),
            (f"boot-{name}", "/proc/sys/kernel/random/boot_id"),
        ):
            self.run("mount", "--bind", str(folder / source), target)
        self.run("mount", "--bind", str(folder / "slurm"), "/etc/slurm")

    def _first(self) -> int:
        """Return the number of the first process, 0 before it is there."""
        for child in psutil.Process(self._outside.pid).children():
            if child.cmdline()[:1] == [sys.executable]:  # not yet unshare
                return child.pid
        return 0

    def start(self, *words: Any, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start a program on this host without waiting for its end. It is the child of the process that is returned."""
        env = {**os.environ, "PATH": search_path(), **environment}
        for name in ("SLURM_CONF", "HOSTNAME"):
            env.pop(name, None)
        where = f"--wd={cwd}" if cwd else "--wd=/"
        command = ["nsenter", "--target", str(self.pid), "--all", where, *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=env, stdout=pipe, stderr=pipe, text=True, stdin=subprocess.DEVNULL
        )

    def run(
        self, *words: Any, check: bool = True, timeout: float = PATIENCE, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host. Return its exit code and output; with `check` it must end with 0."""
        process = self.start(*words, **more)
        try:
            out, errors = process.communicate(timeout=timeout)
        finally:
            end(process)
        assert not check or process.returncode == 0, (words, process.returncode, out, errors)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def processes(self, word: str) -> list[psutil.Process]:
        """Return the processes of this host whose command lines contain the word."""
        mine, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == mine and word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):  # it has ended meanwhile
                continue
        return found

    def cut_off(self) -> None:
        """Let nothing through between this host and the others, without a word to anyone, as if its power was cut."""
        self.run("ip", "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        self.run("ip", "link", "set", "eth0", "up")

    def limit(self, megabit: float | None) -> None:
        """Limit what this host sends to so many Mbit/s; None for no limit."""
        self.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)
        if megabit is not None:
            shape = f"tbf rate {megabit}mbit burst {max(32, int(megabit / 4))}kb latency 50ms"
            self.run("tc", "qdisc", "add", "dev", "eth0", "root", *shape.split())

    def close(self) -> None:
        """End all processes of this host; what is left of it is nothing."""
        self._outside.kill()
        self._outside.wait()


def wait_until(condition: Callable[[], Any], message: str, timeout: float = PATIENCE) -> float:
    """Wait until `condition()` is true. Return the seconds that it took. AssertionError with the message: too long."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout, message
        time.sleep(0.05)
    return time.monotonic() - start


def end(process: subprocess.Popen[str]) -> None:
    """End a program of a host and all that it has started, if it still runs."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.Error:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    process.wait()
