"""Hosts for the tests: namespaces of the kernel on this machine, with a network between them, sshd and a real Slurm.

Each host has its own network, host name, processes, /run, /etc/hosts and configuration of ssh and Slurm; files are
those of this machine, as on a cluster with a shared file system. All processes of a host end with the first of them,
which the kernel ends when the tests end, however they end: its network and its mounts vanish with it, and nothing of
it has a name outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
}
NODES = ("node1", "node2", "node3")
CPUS = 4  # of each node, for Slurm; the cores are those of this machine for all of them
NETWORK = "10.77.0."
DOCKER = "172.17.0.1/16"  # each host of many clusters has a bridge with this address, which leads nowhere
PATIENCE = 300  # seconds for anything that starts or ends; a loaded machine is slow

SLURM = """
ClusterName=test
SlurmctldHost=login
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait={patience}
ReturnToService=2
SlurmdTimeout=30
NodeName={nodes} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={nodes} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
SSHD = """
ListenAddress {address}
HostKey {folder}/ssh/host
AuthorizedKeysFile {folder}/ssh/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""
SSH = """
Host *
    IdentityFile {folder}/ssh/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""
# The first process of a host: it waits, and lets the kernel take away processes whose parents have ended.
FIRST = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    signal.pause()
"""


def missing() -> str:
    """Return why there can be no hosts on this machine, "" if there can."""
    if os.getuid() != 0:
        return "namespaces with their own network need root"
    lacks = {package for name, package in PROGRAMS.items() if not shutil.which(name, path=search_path())}
    if lacks:
        return f"apt-get install {' '.join(sorted(lacks))}"
    done = subprocess.run(["unshare", "--net", "--uts", "--pid", "--fork", "--mount", "true"], check=False)
    return "" if done.returncode == 0 else "the kernel makes no namespaces here"


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


class Cluster:
    """The host `login`, where users and Slurm's controller are, and the nodes. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ssh", "slurm", "state"):
            (folder / name).mkdir(parents=True)
        names = ("login", *NODES)
        self.addresses = {name: f"{NETWORK}{number}" for number, name in enumerate(names, 1)}
        hosts = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (folder / "ssh/config").write_text(SSH.format(folder=folder))
        for name in ("host", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh" / name)]
            subprocess.run(command, check=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        values = {"folder": folder, "nodes": ",".join(NODES), "cpus": CPUS, "patience": PATIENCE}
        (folder / "slurm/slurm.conf").write_text(SLURM.format(**values))
        # /tmp is one for all hosts here, and Slurm would make the same folder in it for each of them.
        (folder / "slurm/mpi.conf").write_text("PMIxCliTmpDirBase=/run\n")
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.close()

    def _start(self) -> None:
        for name in self.addresses:
            self.hosts[name] = Host(name, self.folder)
        self.login.run("ip", "link", "add", "eth0", "type", "bridge")
        for name in NODES:
            ends = f"{name} type veth peer name eth0 netns {self.hosts[name].pid}"
            # The process id is known outside only.
            inside = ["nsenter", "--target", str(self.login.pid), "--net"]
            subprocess.run([*inside, "ip", "link", "add", *ends.split()], check=True)
            self.login.run("ip", "link", "set", name, "master", "eth0", "up")
        for name, host in self.hosts.items():
            host.run("ip", "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            host.run("ip", "link", "add", "docker0", "type", "bridge")
            host.run("ip", "address", "add", DOCKER, "dev", "docker0")
            for link in ("eth0", "docker0"):
                host.run("ip", "link", "set", link, "up")
            (self.folder / f"sshd-{name}").write_text(
                SSHD.format(address=self.addresses[name], folder=self.folder)
            )
            host.run(shutil.which("sshd", path=search_path()), "-f", self.folder / f"sshd-{name}")

    def start_slurm(self) -> None:
        """Start munge and Slurm on all hosts, and wait until all nodes are ready for jobs."""
        for name, host in self.hosts.items():
            words = f"--key-file={self.folder}/munge.key --socket=/run/munge/munge.socket.2 --force"
            files = [f"--{kind}-file={self.folder}/munged-{name}.{kind}" for kind in ("log", "pid", "seed")]
            host.run("munged", *words.split(), *files)
        self.login.run("slurmctld")
        for name in NODES:
            (self.folder / f"spool-{name}").mkdir()
            self.hosts[name].run("slurmd")
        wait_until(lambda: self.states() == ["idle"] * len(NODES), "the nodes do not become idle")

    @property
    def login(self) -> Host:
        return self.hosts["login"]

    @property
    def nodes(self) -> list[Host]:
        return [self.hosts[name] for name in NODES]

    def states(self) -> list[str]:
        """Return what Slurm says of each node."""
        done = self.login.run("sinfo", "-h", "-N", "-o", "%t", check=False)
        return done.stdout.split()

    def submit(self, *words: Any, cwd: Path, **environment: str) -> Job:
        """Submit a batch job from the login node."""
        done = self.login.run("sbatch", "--parsable", *words, cwd=cwd, **environment)
        return Job(self, done.stdout.strip())


class Job:
    """A batch job of Slurm."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster, self.number = cluster, number

    def facts(self) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        done = self.cluster.login.run("scontrol", "show", "job", self.number)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    @property
    def state(self) -> str:
        return self.facts()["JobState"]

    def wait(self, timeout: float = PATIENCE) -> dict[str, str]:
        """Wait for the end of the job. Return what Slurm says of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: self.state in over, f"job {self.number} does not end", timeout)
        return self.facts()

    def cancel(self) -> None:
        self.cluster.login.run("scancel", self.number)


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


def main(words: Sequence[str]) -> None:
    """Start the hosts and a program on the login node, a shell without one: python -m tests.cluster.hosts FOLDER ..."""
    with Cluster(Path(words[0])) as cluster:
        cluster.start_slurm()
        command = ["nsenter", "--target", str(cluster.login.pid), "--all", f"--wd={Path.cwd()}"]
        subprocess.run([*command, *(words[1:] or ["bash"])], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
