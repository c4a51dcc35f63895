"""Finds rank, world size and meeting point of a process in the environment of any launcher, without torch."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.errors import ConfigError

DEFAULT_PORT = 29500  # the default of torch and DeepSpeed
LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 12000, 20000  # range for Slurm jobs, below the ports that systems use for outgoing connections


@dataclass(frozen=True)
class Family:
    """The environment variables with which one family of launchers describes a rank."""

    launchers: str  # as messages name them
    rank: str
    size: str
    local_rank: tuple[str, ...]  # the first variable that is set is used
    local_size: tuple[str, ...]  # number of ranks on this machine


TORCH = Family("torchrun or deepspeed", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",))
OPEN_MPI = Family(
    "Open MPI",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
PMI = Family(
    "MPICH, Intel MPI or another launcher that speaks PMI",
    "PMI_RANK",
    "PMI_SIZE",
    ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
    ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
)
SLURM = Family("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ())
PMIX_RANK = "PMIX_RANK"  # PMIx names no variable for the number of ranks
# torchrun and the deepspeed launcher set these with RANK; they show that RANK was not set by hand
_SET_BY_LAUNCHER = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")


@dataclass(frozen=True)
class RankInfo:
    """Rank, world size and meeting point of this process, known before torch.distributed starts."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str = LOOPBACK
    master_port: int = DEFAULT_PORT

    @classmethod
    def discover(cls, local_rank: int | None = None, env: Mapping[str, str] = os.environ) -> "RankInfo":
        """Read rank and world size from the first family of variables that is set: RANK, Open MPI, PMI, Slurm.

        torchrun and mpirun come before Slurm because they start ranks inside a Slurm step, whose variables then
        describe the launcher. Families that contradict each other are refused. MASTER_ADDR and MASTER_PORT set where
        the ranks meet. Without them the ranks meet on the first node of the Slurm step, at a port computed from the
        job's id, or on this machine at port 29500. A batch script or a shell in an allocation counts as one process
        alone.

        Args:
            local_rank: the argument that the deepspeed launcher passes.
            env: the environment; an empty variable counts as unset.

        Raises:
            ConfigError: a variable is not a number, one of a family's two variables is missing, families contradict
                each other, or ranks on several machines have no address to meet at.
        """
        env = {name: value for name, value in env.items() if value}
        families = [family for family in (TORCH, OPEN_MPI, PMI, SLURM) if _is_set(family, env)]
        _refuse_contradictions(families, env)
        if not families:
            return cls(0, 1, 0, env.get("MASTER_ADDR", LOOPBACK), _port(env) or DEFAULT_PORT)
        rank, size = _rank_and_size(families[0], env)
        if not 0 <= rank < size:
            raise ConfigError(
                f"{families[0].rank}: {rank} with {families[0].size} {size}, but a rank must be at least 0 and less "
                f"than {families[0].size}; start the ranks with deepspeed, torchrun, srun or mpirun, or unset "
                f"{families[0].rank} and {families[0].size} for one process alone"
            )
        local = _local_rank(families, size, env)
        address, port = _meeting_point(families, env)
        return cls(rank, size, (local_rank or 0) if local is None else local, address, port)

    def export(self) -> None:
        """Set the five variables in the environment, because DeepSpeed tries MPI when one of them is missing."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def _is_set(family: Family, env: Mapping[str, str]) -> bool:
    """Return whether both variables of `family` are set; raise `ConfigError` when only one is.

    One alone is allowed for Slurm, because a batch script has SLURM_PROCID without being a rank.
    """
    there = [name for name in (family.rank, family.size) if name in env]
    if len(there) == 1 and family is not SLURM:
        missing = family.size if there == [family.rank] else family.rank
        raise ConfigError(
            f"{there[0]}: {env[there[0]]} is set without {missing}, but both are needed; "
            f"start the ranks with deepspeed, torchrun, srun or mpirun, or unset {there[0]}"
        )
    return len(there) == 2


def _rank_and_size(family: Family, env: Mapping[str, str]) -> tuple[int, int]:
    return _number(env, family.rank) or 0, _number(env, family.size) or 0


def _refuse_contradictions(families: Sequence[Family], env: Mapping[str, str]) -> None:
    """Raise `ConfigError` when two families contradict each other.

    They agree when they are equal, or when each process of the outer launcher started several ranks of the inner one.
    In the second case a RANK set by hand must be one of the ranks of that process.
    """
    for number, inner in enumerate(families):
        for outer in families[number + 1 :]:
            (rank, size), (outer_rank, outer_size) = _rank_and_size(inner, env), _rank_and_size(outer, env)
            by_hand = inner is TORCH and not any(name in env for name in _SET_BY_LAUNCHER)
            nested = size > outer_size and not (by_hand and rank * outer_size // size != outer_rank)
            if (rank, size) != (outer_rank, outer_size) and not nested:
                raise ConfigError(
                    f"{inner.rank}: {rank} with {inner.size} {size} (set by {inner.launchers}) contradicts "
                    f"{outer.rank} {outer_rank} with {outer.size} {outer_size} (set by {outer.launchers}); unset the "
                    "two of the launcher that did not start this process"
                )
    _refuse_other_pmix_rank(families, env)


def _refuse_other_pmix_rank(families: Sequence[Family], env: Mapping[str, str]) -> None:
    """Raise `ConfigError` when PMIX_RANK is the only variable set, or equals the rank of no family."""
    pmix_rank = _number(env, PMIX_RANK)
    if pmix_rank is None:
        return
    if not families:
        raise ConfigError(
            f"{PMIX_RANK}: {pmix_rank} is set, but no variable says how many ranks there are; start them with srun or "
            "with Open MPI's mpirun, or set RANK and WORLD_SIZE"
        )
    known = {family.rank: _rank_and_size(family, env) for family in families}
    launcher_says_more = TORCH.rank in known and any(name in env for name in _SET_BY_LAUNCHER)
    if not launcher_says_more and all(other != pmix_rank for other, _ in known.values()):
        shown = " and ".join(f"{name} {other}" for name, (other, _) in known.items())
        raise ConfigError(
            f"{PMIX_RANK}: {pmix_rank} contradicts {shown}; unset the variables of the launcher that is not used"
        )


def _local_rank(families: Sequence[Family], size: int, env: Mapping[str, str]) -> int | None:
    """Return this process's number among the ranks of its machine; None when only RANK and WORLD_SIZE are set."""
    names = ("LOCAL_RANK", *families[0].local_rank, *(n for family in families[1:] for n in family.local_rank))
    if families[0] is TORCH:
        names = TORCH.local_rank
    name = next((name for name in names if name in env), None)
    if name is None and families[0] is not TORCH and size > 1:
        raise ConfigError(
            f"LOCAL_RANK: missing, and {families[0].launchers} set none of {', '.join(families[0].local_rank)}; set "
            "LOCAL_RANK to the number of this process among those of its machine, which chooses its GPU"
        )
    return None if name is None else _number(env, name) or 0


def _meeting_point(families: Sequence[Family], env: Mapping[str, str]) -> tuple[str, int]:
    """Return the address and the port where the ranks meet."""
    family, address, port = families[0], env.get("MASTER_ADDR"), _port(env)
    if family is TORCH:
        return address or LOOPBACK, port or DEFAULT_PORT
    in_step = SLURM in families and _rank_and_size(SLURM, env) == _rank_and_size(family, env)
    if "SLURM_JOB_ID" in env:
        port = port or slurm_port(env)
        hosts = env.get("SLURM_STEP_NODELIST") if in_step else None
        address = address or first_host(hosts or env.get("SLURM_JOB_NODELIST", ""))
    if address is None:
        size = _rank_and_size(family, env)[1]
        here = next((_number(env, name) for name in family.local_size if name in env), None)
        if size > 1 and here != size:
            raise ConfigError(
                f"MASTER_ADDR: missing, but {family.size} is {size} and {here or 'an unknown number'} of these ranks "
                "are on this machine; pass the address of rank 0's machine to all ranks: mpirun -x MASTER_ADDR=HOST "
                "(Open MPI), or mpiexec -genv MASTER_ADDR HOST"
            )
    return address or LOOPBACK, port or DEFAULT_PORT


def slurm_port(env: Mapping[str, str]) -> int:
    """Return a port that depends on the job and step, so that jobs on one node and steps of one job do not collide."""
    job, step = _number(env, "SLURM_JOB_ID") or 0, _number(env, "SLURM_STEP_ID") or 0
    return FIRST_PORT + (10 * job + step % 10) % PORTS


def first_host(hosts: str) -> str | None:
    """Return the first name of a Slurm host list, n01 for `n[01-04,7],m1`; None for an empty list."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else None


def _port(env: Mapping[str, str]) -> int | None:
    port = _number(env, "MASTER_PORT")
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"MASTER_PORT: {port} must be 1 to 65535; correct this environment variable or unset it")
    return port


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise ConfigError(f"{name}: '{text}' is not a number; correct this environment variable or unset it") from None
