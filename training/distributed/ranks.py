"""Who a process is among the ranks and where they meet, however it was started.  Nothing here needs torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import ConfigError

DEFAULT_PORT = 29500  # torch's and DeepSpeed's
FIRST_PORT, PORTS = 12000, 20000  # for Slurm jobs: below the ports that systems give to outgoing connections


@dataclass(frozen=True)
class RankInfo:
    """Who this process is, before anything is initialised."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_PORT

    @classmethod
    def discover(cls, local_rank: int | None = None, env: Mapping[str, str] = os.environ) -> "RankInfo":
        """From RANK and WORLD_SIZE (deepspeed, torchrun), else from srun's SLURM_*, else one process alone.

        A launcher inside a Slurm step knows more than Slurm, so it comes first.  Below srun the ranks meet on the
        step's first node, at a port made of the job's id; MASTER_ADDR and MASTER_PORT overrule both.  A batch script or
        a shell in an allocation is no rank.  `local_rank` is what the deepspeed launcher passes as an argument.
        Raises `ConfigError` for numbers that are none.
        """
        address, port, alone = env.get("MASTER_ADDR"), _number(env, "MASTER_PORT"), cls(0, 1, 0)
        if "WORLD_SIZE" in env and "RANK" in env:
            local = _number(env, "LOCAL_RANK")
            found = cls(_number(env, "RANK") or 0, _number(env, "WORLD_SIZE") or 1, local or local_rank or 0)
        elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
            rank, world = _number(env, "SLURM_PROCID") or 0, _number(env, "SLURM_STEP_NUM_TASKS") or 1
            found = cls(rank, world, _number(env, "SLURM_LOCALID") or 0)
            address = address or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
            port = port or slurm_port(env)
        else:
            found = alone
        if not 0 <= found.rank < found.world_size:
            raise ConfigError(
                f"RANK: {found.rank} with WORLD_SIZE {found.world_size}, must be 0 to {found.world_size - 1}; start "
                "the ranks with deepspeed, torchrun or srun, or unset RANK and WORLD_SIZE for one process alone"
            )
        where = (address or alone.master_addr, port or alone.master_port)
        return cls(found.rank, found.world_size, found.local_rank, *where)

    def export(self) -> None:
        """Put the five variables into the environment: DeepSpeed looks for all and tries MPI when one is missing."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def slurm_port(env: Mapping[str, str]) -> int:
    """A port of the job's own: jobs that share a node, and steps of one job, do not meet by mistake."""
    job, step = _number(env, "SLURM_JOB_ID") or 0, _number(env, "SLURM_STEP_ID") or 0
    return FIRST_PORT + (10 * job + step % 10) % PORTS


def first_host(hosts: str) -> str | None:
    """The first name of a Slurm host list: `n[01-04,7],m1` is n01.  None for an empty list."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else None


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise ConfigError(f"{name}: '{text}' is no number; correct this environment variable or unset it") from None
