"""Who a process is, however it was started."""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from tests.e2e.commands import free_port
from training.distributed.ranks import RankInfo, first_host
from training.distributed.topology import connect
from training.errors import ConfigError, TrainingError

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
LAUNCHED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29511"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, RankInfo(0, 1, 0, "127.0.0.1", 29500)),
        (LAUNCHED, RankInfo(3, 8, 1, "n1", 29511)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, RankInfo(3, 8, 5)),  # --local_rank=5
        (STEP, RankInfo(3, 4, 1, "gpu007", 13231)),
        (STEP | {"MASTER_ADDR": "ib-007", "MASTER_PORT": "4000"}, RankInfo(3, 4, 1, "ib-007", 4000)),
        (STEP | LAUNCHED, RankInfo(3, 8, 1, "n1", 29511)),  # srun torchrun
        # a batch script or salloc's shell is no rank
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "5"}, RankInfo(0, 1, 0)),
    ],
)
def test_rank_from_the_launchers_environment(environment: dict[str, str], expected: RankInfo) -> None:
    assert RankInfo.discover(5, environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"RANK": "4", "WORLD_SIZE": "4"}, "RANK: 4"), ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK: 'x'")],
)
def test_numbers_that_are_none(environment: dict[str, str], said: str) -> None:
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


def test_a_port_in_use_is_said_plainly(own_environment: None) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"MASTER_PORT: {port} is in use on .*--master_port N"):
            connect(RankInfo(0, 2, 0, "127.0.0.1", port), "gloo", 20)


def test_a_first_rank_that_is_not_there_is_said_plainly(own_environment: None) -> None:
    port = free_port()
    with pytest.raises(TrainingError, match=rf"rank 1 on .* cannot meet the others at 127.0.0.1:{port}"):
        connect(RankInfo(1, 2, 0, "127.0.0.1", port), "gloo", 1)
