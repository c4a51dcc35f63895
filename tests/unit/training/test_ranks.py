"""Who a process is, however it was started."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from training.distributed.ranks import RankInfo, first_host
from training.distributed.topology import connect
from training.errors import ConfigError

STEP = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",  # the job's
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_JOB_NODELIST": "gpu[001-008]",
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_ID": "1",
}
OPEN_MPI = {  # as mpirun 4.1 -n 2 sets them, among others
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}  # MPICH 4.0's mpiexec
PALS = {"PMI_RANK": "9", "PMI_SIZE": "16", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "8"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
# mpirun's daemon on the second node of a Slurm job is a task of a step that the ranks know nothing of
DAEMON = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n2"}
DAEMON |= {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_ID": "0"}
ACROSS = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
LAUNCHED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29511"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, RankInfo(0, 1, 0, "127.0.0.1", 29500)),
        (LAUNCHED, RankInfo(3, 8, 1, "n1", 29511)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, RankInfo(3, 8, 5)),  # --local_rank=5
        (STEP, RankInfo(3, 4, 1, "gpu007", 13231)),
        (STEP | {"MASTER_ADDR": "ib-007", "MASTER_PORT": "4000"}, RankInfo(3, 4, 1, "ib-007", 4000)),
        (STEP | LAUNCHED | TORCHRUN, RankInfo(3, 8, 1, "n1", 29511)),  # srun torchrun
        (STEP | LAUNCHED | {"CROSS_RANK": "0"}, RankInfo(3, 8, 1, "n1", 29511)),  # srun deepspeed
        (STEP | LAUNCHED | {"RANK": "6"}, RankInfo(6, 8, 1, "n1", 29511)),  # srun starts two ranks a task by hand
        (OPEN_MPI, RankInfo(1, 2, 1)),
        (OPEN_MPI | {"MASTER_PORT": "4000"}, RankInfo(1, 2, 1, "127.0.0.1", 4000)),
        (ACROSS | {"MASTER_ADDR": "n1"}, RankInfo(1, 2, 0, "n1")),
        (ACROSS | DAEMON, RankInfo(1, 2, 0, "n1", 13230)),  # mpirun in a Slurm job
        (HYDRA, RankInfo(1, 2, 1)),
        (PALS | {"MASTER_ADDR": "n1"}, RankInfo(9, 16, 1, "n1")),
        (OPEN_MPI | HYDRA, RankInfo(1, 2, 1)),
        (STEP | {"PMI_RANK": "3", "PMI_SIZE": "4", "PMIX_RANK": "3"}, RankInfo(3, 4, 1, "gpu007", 13231)),  # --mpi=pmi2
        (OPEN_MPI | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, RankInfo(1, 2, 0)),
        (OPEN_MPI | LAUNCHED | TORCHRUN, RankInfo(3, 8, 1, "n1", 29511)),  # mpirun torchrun
        ({"RANK": "", "WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": ""}, RankInfo(0, 1, 0)),
        # a batch script or salloc's shell is no rank
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "5"}, RankInfo(0, 1, 0)),
    ],
)
def test_rank_from_the_launchers_environment(environment: dict[str, str], expected: RankInfo) -> None:
    assert RankInfo.discover(5, environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK: 4"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK: 0 with WORLD_SIZE 0"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK: 'x'"),
        (LAUNCHED | {"MASTER_PORT": "70000"}, "MASTER_PORT: 70000"),
        ({"OMPI_COMM_WORLD_RANK": "-1", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK: -1"),
    ],
)
def test_numbers_that_are_none(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RankInfo.discover(None, environment)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "1"}, "RANK: 0 with WORLD_SIZE 1 .* OMPI_COMM_WORLD_RANK 1 with .* 2"),
        (
            OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK: 0 with WORLD_SIZE 2 .* contradicts OMPI_COMM_WORLD_RANK 1",
        ),
        (
            OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "4"},
            "RANK: 0 with WORLD_SIZE 4 .* contradicts OMPI_COMM_WORLD_RANK 1",
        ),
        (STEP | {"RANK": "0", "WORLD_SIZE": "1"}, "RANK: 0 .* contradicts SLURM_PROCID 3"),
        (STEP | {"PMI_RANK": "0", "PMI_SIZE": "1"}, "PMI_RANK: 0 with PMI_SIZE 1 .* contradicts SLURM_PROCID 3"),
        (OPEN_MPI | {"PMI_RANK": "0", "PMI_SIZE": "2"}, "OMPI_COMM_WORLD_RANK: 1 .* contradicts PMI_RANK 0"),
        (OPEN_MPI | {"PMIX_RANK": "0"}, "PMIX_RANK: 0 contradicts OMPI_COMM_WORLD_RANK 1"),
    ],
)
def test_families_that_contradict_each_other_are_refused_by_name(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RankInfo.discover(None, environment)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "1"}, "RANK: 1 is set without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: 2 is set without RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE: 2 is set without OMPI_COMM_WORLD_RANK"),
        ({"PMI_RANK": "1"}, "PMI_RANK: 1 is set without PMI_SIZE"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK: 1 is set, but no variable says how many ranks"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "LOCAL_RANK: missing"),
        (ACROSS, "MASTER_ADDR: missing, but OMPI_COMM_WORLD_SIZE is 2 and 1 of these ranks are on this machine"),
        (PALS, "MASTER_ADDR: missing, but PMI_SIZE is 16 and 8 of these"),
    ],
)
def test_half_of_what_must_be_known_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RankInfo.discover(None, environment)


def test_jobs_and_steps_have_ports_of_their_own_below_the_ephemeral_ones() -> None:
    jobs = [STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(500) for step in range(10)]
    ports = {RankInfo.discover(None, job).master_port for job in jobs}
    assert len(ports) == len(jobs)
    assert 1024 < min(ports) <= max(ports) < 32768


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("n[01-04,7],m1", "n01"),
        ("a-b,c", "a-b"),
        ("r[1-2]n[07,09]", "r1n07"),
        ("n[3,5-6]", "n3"),
        ("n7.site", "n7.site"),
        ("", None),
    ],
)
def test_first_host_of_a_list(hosts: str, first: str | None) -> None:
    assert first_host(hosts) == first


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What meeting puts into the environment is taken out again."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")


def test_groups_made_later_wait_as_long_as_the_world(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_c10d, "default_pg_timeout", distributed_c10d.default_pg_timeout)
    connect(RankInfo(0, 1, 0), "gloo", 7260)
    try:
        groups = [dist.new_group([0]), init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b")).get_group("b")]
        timeouts = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        assert timeouts == [timedelta(seconds=7260)] * 2
    finally:
        dist.destroy_process_group()
