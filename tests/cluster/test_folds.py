"""Folds of a cross-validation side by side on the nodes of one job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.host import wait_until
from tests.cluster.hosts import Cluster, Job
from tests.cluster.runs import ENVIRONMENT, last_step, options, saved_step, wait_until_it_trains
from utils.demo.slides import make_demo

ENDLESS = 10**6


@pytest.fixture(scope="module")
def four_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo"), train=4, val=0, size=1024) / "training"


def words_of(slides: Path, log_dir: Path, folds: int, steps: int) -> list[str]:
    words = options(slides, log_dir, steps)
    place = words.index("--val_split")
    return [*words[:place], "--folds", str(folds), *words[place + 2 :]]


def submit(
    cluster: Cluster, clone: Path, slides: Path, log_dir: Path, folds: int, per_node: int, steps: int
) -> Job:
    """Submit all folds at once on two nodes."""
    size = ["-N", "2", f"--ntasks-per-node={per_node}", "--requeue", "-o", log_dir.with_suffix(".out")]
    more = {"AT_ONCE": str(folds), "REQUEUE": "1", "PREDICT": "--no_cuda", **ENVIRONMENT}
    return cluster.submit(*size, "run_folds.sh", *words_of(slides, log_dir, folds, steps), cwd=clone, **more)


def test_two_folds_on_two_nodes_become_one_table(
    cluster: Cluster, clone: Path, four_slides: Path, tmp_path: Path
) -> None:
    log_dir = tmp_path / "cv"
    facts = submit(cluster, clone, four_slides, log_dir, folds=2, per_node=1, steps=16).wait(900)
    said = log_dir.with_suffix(".out").read_text()
    assert facts["JobState"] == "COMPLETED", said
    for fold in (1, 2):
        assert f"fold {fold} of 2: 1 rank on node{fold}, output in" in said
        assert last_step(log_dir / f"fold_{fold}") == 16
    assert (log_dir / "folds.html").exists()


def test_two_folds_on_two_hosts_of_pbs_become_one_table(
    cluster: Cluster, clone: Path, four_slides: Path, tmp_path: Path
) -> None:
    """The job is made up: its list of hosts, on the first of them. Other hosts are reached by ssh."""
    (tmp_path / "hosts").write_text("node1\nnode2\n")
    job = {"PBS_JOBID": "7", "PBS_NODEFILE": str(tmp_path / "hosts"), "AT_ONCE": "2", "PREDICT": "--no_cuda"}
    words = ["sh", "run_folds.sh", *words_of(four_slides, tmp_path / "cv", folds=2, steps=16)]
    done = cluster.nodes[0].run(*words, cwd=clone, timeout=900, **job, **ENVIRONMENT)
    assert "fold 2 of 2: 1 rank on node2, output in" in done.stdout
    assert "1 on 1 node: node2 (1)" in (tmp_path / "cv/output/fold_2.log").read_text()
    assert (tmp_path / "cv/folds.html").exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
@pytest.mark.parametrize(("folds", "per_node"), [(2, 1), (4, 2)])
def test_folds_train_at_the_same_time_stop_together_and_come_back(
    cluster: Cluster, clone: Path, four_slides: Path, tmp_path: Path, folds: int, per_node: int
) -> None:
    """Each on a node, or two on each: then two launchers start their daemons on the second node."""
    folders = [tmp_path / "cv" / f"fold_{fold}" for fold in range(1, folds + 1)]
    job = submit(cluster, clone, four_slides, tmp_path / "cv", folds, per_node, ENDLESS)
    try:
        for folder in folders:
            wait_until_it_trains(folder)
        for node in cluster.nodes[:2]:
            ranks = [
                process
                for process in node.processes("train.py")
                if process.cmdline()[1:3] == ["-u", "train.py"]
            ]
            cores = {frozenset(rank.cpu_affinity()) for rank in ranks}  # also those of their samplers
            assert len(cores) == per_node
            assert sum(map(len, cores)) == len(frozenset().union(*cores))
        cluster.login.run("scancel", "--batch", "--signal=USR1", job.number)
        wait_until(lambda: job.state != "RUNNING", "the job does not stop")
        for folder in folders:
            assert saved_step(folder) >= last_step(folder) > 0
        before = [last_step(folder) for folder in folders]
        for folder, step in zip(folders, before):
            wait_until_it_trains(folder, step + 8)
    finally:
        job.cancel()
        facts = job.wait()
    said = (tmp_path / "cv.out").read_text()
    assert facts["Restarts"] == "1", said
    assert facts["ExitCode"] == "75:0", said
