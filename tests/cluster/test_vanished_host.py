"""A host that vanishes in the middle of a run: who says so and when, when the run ends, and that it goes on."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.host import end, wait_until
from tests.cluster.hosts import Cluster
from tests.cluster.runs import HYDRA, KIND, last_step, options, saved_step, wait_until_it_trains
from tests.cluster.test_stopping import ENDLESS, assert_it_goes_on, start, submit
from utils.cli import EXIT_STALLED

NAMED = "rank 1 on node2 has not answered for"
ENDS = {
    "openmpi": 205,
    "mpich": EXIT_STALLED,
}  # mpirun notices that it has lost a daemon, mpiexec.hydra does not
LIMIT = ["--stall_limit", "2"] if HYDRA else []


def test_it_is_named_and_the_run_ends_with_a_checkpoint_and_goes_on(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    log_dir = tmp_path / "log"
    words = [*LIMIT, *options(demo, log_dir, ENDLESS)]
    process = start(cluster.login, clone, words)
    node, lines = cluster.nodes[1], []
    try:
        wait_until_it_trains(log_dir)
        node.cut_off()
        cut = time.monotonic()
        for line in process.stderr or ():
            lines.append(line)
            if NAMED in line:
                break
        said = time.monotonic() - cut
        wait_until(lambda: saved_step(log_dir) >= last_step(log_dir), "no checkpoint", timeout=60)
        saved = time.monotonic() - cut
        assert process.poll() is None
        process.communicate(timeout=400)
        ended = time.monotonic() - cut
    finally:
        end(process)
        for left in node.processes("train.py"):
            left.kill()
        cluster.plug_in(node)
    print(
        f"named after {said:.0f} s, saved after {saved:.0f} s, ended after {ended:.0f} s: {process.returncode}"
    )
    assert said < 90, lines
    assert ended < 300
    assert process.returncode == ENDS[KIND]
    assert_it_goes_on(cluster, clone, words)


def test_a_job_goes_on_with_another_node(cluster: Cluster, clone: Path, demo: Path, tmp_path: Path) -> None:
    """Slurm requeues it when it finds out, and its ranks are gone seconds later: they must have saved before."""
    log_dir = tmp_path / "log"
    job = submit(
        cluster, clone, options(demo, log_dir, ENDLESS), "--requeue", "-w", "node1,node2", REQUEUE="1"
    )
    node = cluster.nodes[1]
    try:
        wait_until_it_trains(log_dir)
        node.cut_off()
        cut = time.monotonic()
        wait_until(lambda: job.facts()["Restarts"] == "1", "the job is not requeued", timeout=300)
        requeued, step = time.monotonic() - cut, saved_step(log_dir)
        assert step >= last_step(log_dir) > 0
        cluster.login.run("scontrol", "update", f"JobId={job.number}", "ReqNodeList=")
        wait_until(lambda: last_step(log_dir) > step, "the job does not go on", timeout=600)
        print(f"requeued after {requeued:.0f} s, has trained on after {time.monotonic() - cut:.0f} s")
        assert job.facts()["NodeList"] == "node[1,3]"
    finally:
        job.cancel()
        cluster.plug_in(node)
