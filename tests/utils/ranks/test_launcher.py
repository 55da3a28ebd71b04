"""What the environment tells of the program that started the ranks."""

import os
from unittest import mock

import pytest

from CAMELYON17_PREPROCESSING import preprocess
from utils.cli import UserError
from utils.ranks import launcher, world
from utils.ranks.launcher import launcher_mpi, launcher_name, launcher_rank
from utils.ranks.single import require_company
from utils.ranks.world import check_launcher, init_world, prepare_mpi

SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # of a batch script, and of what it starts


@pytest.fixture
def started_by(monkeypatch):
    def set_environment(**variables: str) -> None:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "PMI", "MPI_", "HOROVOD_")):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    ("variables", "rank", "mpi", "name"),
    [
        ({}, (0, 1), None, "none"),
        (BATCH, (0, 1), None, "none"),
        (
            {**SRUN, "PMIX_RANK": "2", "PMIX_NAMESPACE": "slurm.pmix.7.0"},
            (2, 4),
            "openmpi",
            "srun --mpi=pmix",
        ),
        ({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4), "mpich", "srun --mpi=pmi2"),
        # mpiexec.hydra starts its daemons by srun
        (
            {**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"},
            (5, 8),
            "mpich",
            "MPICH's or Intel MPI's mpiexec.hydra",
        ),
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
            "Open MPI's mpirun",
        ),
        (
            {**SRUN, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},  # one rank
            (0, 1),
            "openmpi",
            "Open MPI's mpirun",
        ),
        (
            {**BATCH, "HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_CONTROLLER": "gloo"},
            (1, 2),
            None,
            "horovodrun",
        ),
    ],
)
def test_each_launcher_tells_its_ranks(started_by, variables, rank, mpi, name):
    started_by(**variables)
    assert launcher_name() == name
    assert launcher_rank() == rank
    assert launcher_mpi() == mpi
    require_company()


def test_tasks_of_srun_that_do_not_know_of_each_other_are_refused(started_by):
    started_by(**SRUN)
    for installed, way in (
        ([], "by `srun --mpi=pmix` .* or by mpirun"),
        (["mpich"], "by mpiexec.hydra, as run_"),
    ):
        with (
            mock.patch.object(launcher.importlib.metadata, "distributions", lambda name, i=installed: i),
            pytest.raises(UserError, match=rf"srun started 4 tasks .* Start them {way}"),
        ):
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


@pytest.mark.parametrize(
    ("built", "variables", "instead"),
    [
        (
            "openmpi",
            {"PMI_RANK": "2", "PMI_SIZE": "4"},
            "srun --mpi=pmi2, .* `srun --mpi=pmix` or the mpirun",
        ),
        ("mpich", {"PMIX_RANK": "2"}, "srun --mpi=pmix, .* start it with the mpiexec.hydra"),
    ],
)
def test_srun_of_another_mpi_is_refused_with_the_one_that_works(
    started_by, monkeypatch, built, variables, instead
):
    monkeypatch.setattr(world, "mpi_of_horovod", lambda: built)
    started_by(**SRUN, **variables)
    with pytest.raises(UserError, match=rf"started by {instead} of that environment"):
        check_launcher()
    started_by(PMI_RANK="2", PMI_SIZE="4", MPI_LOCALRANKID="0")
    if built == "openmpi":
        with pytest.raises(UserError, match=r"mpiexec.hydra, .*: start it with the mpirun of that"):
            check_launcher()


def test_in_a_container_the_hosts_launcher_or_another_image_is_advised(started_by, monkeypatch):
    monkeypatch.setattr(world, "mpi_of_horovod", lambda: "openmpi")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/extended-fov.sif")
    started_by(PMI_RANK="0", PMI_SIZE="2")
    with pytest.raises(UserError, match="mpirun of the host's Open MPI 4, or take an image with MPI=intel"):
        check_launcher()


def test_open_mpi_is_told_what_it_knows_of_a_newer_pmix(started_by, monkeypatch):
    monkeypatch.setattr(world, "leave_out_bridges", lambda: None)
    for offered, taken in (("munge,native", "native"), ("munge", "munge")):
        started_by(PMIX_SECURITY_MODE=offered)
        prepare_mpi()
        assert os.environ["PMIX_SECURITY_MODE"] == taken


def test_open_mpi_does_not_put_unless_the_user_says_otherwise(started_by):
    started_by()
    prepare_mpi()
    assert "put" not in dict(os.environ)["OMPI_MCA_btl_tcp_flags"].split(",")
    started_by(OMPI_MCA_btl_tcp_flags="send,put")
    prepare_mpi()
    assert dict(os.environ)["OMPI_MCA_btl_tcp_flags"] == "send,put"


@pytest.mark.parametrize(
    ("users", "parent", "outside"),
    [
        ("0 0 4294967295", None, False),  # the host, where the parent is another user's
        ("1000 1000 1", None, True),  # what the kernel shows of a launcher on the host: nothing
        ("1000 1000 1", "user:[7]", True),
        ("1000 1000 1", "user:[8]", False),  # mpirun inside of the image
    ],
)
def test_a_launcher_outside_of_the_user_namespace_is_known(tmp_path, users, parent, outside):
    for of, namespace in (("self", "user:[8]"), (str(os.getppid()), parent)):
        (tmp_path / of / "ns").mkdir(parents=True)
        if namespace:
            (tmp_path / of / "ns/user").symlink_to(namespace)
    (tmp_path / "self/uid_map").write_text(f"{users}\n")
    assert launcher.is_launched_from_outside(tmp_path) is outside


@pytest.mark.parametrize("outside", [True, False])
def test_ranks_of_several_user_namespaces_copy_through_shared_memory(started_by, monkeypatch, outside):
    monkeypatch.setattr(world, "is_launched_from_outside", lambda: outside)
    started_by()
    prepare_mpi()
    mechanism = dict(os.environ).get("OMPI_MCA_btl_vader_single_copy_mechanism")
    assert mechanism == ("none" if outside else None)
