"""Hosts for the tests: namespaces of the kernel on this machine, with a network between them, sshd and a real Slurm.

Each host has its own network, host name, processes, /run, /etc/hosts and configuration of ssh and Slurm; files are
those of this machine, as on a cluster with a shared file system. All processes of a host end with the first of them,
which the kernel ends when the tests end, however they end: its network and its mounts vanish with it, and nothing of
it has a name outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.host import PATIENCE, Host, search_path, wait_until

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
SlurmdTimeout=120
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


def missing() -> str:
    """Return why there can be no hosts on this machine, "" if there can."""
    if os.getuid() != 0:
        return "namespaces with their own network need root"
    lacks = {package for name, package in PROGRAMS.items() if not shutil.which(name, path=search_path())}
    if lacks:
        return f"apt-get install {' '.join(sorted(lacks))}"
    done = subprocess.run(["unshare", "--net", "--uts", "--pid", "--fork", "--mount", "true"], check=False)
    return "" if done.returncode == 0 else "the kernel makes no namespaces here"


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

    def plug_in(self, node: Host) -> None:
        """Bring a node that was cut off back: as after a power cut, its slurmd starts anew and reports to Slurm.

        Without that Slurm asks nodes that are down only now and then, here not once in eight minutes.
        """
        node.plug_in()
        for left in node.processes("slurmd"):
            left.kill()
        node.run("slurmd")
        wait_until(lambda: self.states() == ["idle"] * len(NODES), "the nodes do not come back")

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


def main(words: Sequence[str]) -> None:
    """Start the hosts and a program on the login node, a shell without one: python -m tests.cluster.hosts FOLDER ..."""
    with Cluster(Path(words[0])) as cluster:
        cluster.start_slurm()
        command = ["nsenter", "--target", str(cluster.login.pid), "--all", f"--wd={Path.cwd()}"]
        subprocess.run([*command, *(words[1:] or ["bash"])], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
