"""What the environment tells of the program that started the ranks."""

import os

import pytest

from CAMELYON17_PREPROCESSING import preprocess
from utils.cli import UserError
from utils.ranks.launcher import launcher_mpi, launcher_rank
from utils.ranks.single import require_company
from utils.ranks.world import init_world

SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # of a batch script, and of what it starts


@pytest.fixture
def started_by(monkeypatch):
    def set_environment(**variables: str) -> None:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "PMI", "HOROVOD_")):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    ("variables", "rank", "mpi"),
    [
        ({}, (0, 1), None),
        (BATCH, (0, 1), None),
        ({**SRUN, "PMIX_RANK": "2", "PMIX_NAMESPACE": "slurm.pmix.7.0"}, (2, 4), "openmpi"),
        ({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4), "mpich"),  # srun --mpi=pmi2
        # mpirun starts its daemons by srun, whose variables its ranks have as well
        (
            {
                **SRUN,
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "8",
                "PMIX_RANK": "3",
            },
            (3, 8),
            "openmpi",
        ),
        ({**BATCH, "HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_CONTROLLER": "gloo"}, (1, 2), None),
    ],
)
def test_each_launcher_tells_its_ranks(started_by, variables, rank, mpi):
    started_by(**variables)
    assert launcher_rank() == rank
    assert launcher_mpi() == mpi
    require_company()


def test_tasks_of_srun_that_do_not_know_of_each_other_are_refused(started_by):
    started_by(**SRUN)
    with pytest.raises(UserError, match=r"srun started 4 tasks .* `srun --mpi=pmix`"):
        require_company()
    started_by(**{**SRUN, "SLURM_STEP_NUM_TASKS": "1"})  # srun --pty bash, or one task
    require_company()
    started_by(**{**SRUN, "SLURM_STEP_ID": "batch"})
    require_company()


def test_no_program_starts_so(started_by):
    started_by(**SRUN)
    for start in (lambda: init_world(True), lambda: init_world(False), preprocess._ranks):
        with pytest.raises(UserError, match="srun started 4 tasks"):
            start()
