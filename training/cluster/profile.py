"""The profile of a cluster and of a run's request to it: `configs/cluster/NAME.yaml`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from data_prep.field_values import fit
from data_prep.sources.places import local_path
from training.cluster.hostlist import expand, split
from training.config import Positive, Section, apply_override, explain, read_yaml
from training.errors import ConfigError
from training.logs import without_secret

PREFIX = "cluster."  # of overrides that belong to the profile
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+))?(?::(\d+))?)", re.ASCII)
_MEMORY = re.compile(r"(\d+)([MGT])", re.ASCII)
_MIB = {"M": 1, "G": 1024, "T": 1024 * 1024}


def one_line(text: str) -> str:
    """Return `text`. Raises `ValueError` when it has a control character, which could end a line of a script."""
    if _CONTROL.search(text):
        raise ValueError("holds a line break or another control character; remove it")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("is not a time limit; write HH:MM:SS or D-HH:MM:SS")
    return text


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError("is not an amount of memory; write it like 400G")
    return text


def minutes(time: str) -> float:
    """Return a Slurm time limit in minutes."""
    match = _TIME.fullmatch(time)
    assert match is not None, time
    days, hours, mins, secs, *short = (int(part) if part else 0 for part in match.groups())
    if match[1]:
        return days * 1440 + hours * 60 + mins + secs / 60
    if match[7]:
        return short[0] * 60 + short[1] + short[2] / 60
    return short[0] + short[1] / 60  # the forms MM and MM:SS


def mebibytes(memory: str) -> int:
    """Return an amount of memory in MiB, the unit of `scontrol`."""
    match = _MEMORY.fullmatch(memory)
    assert match is not None, memory
    return int(match[1]) * _MIB[match[2]]


def _home(text: str) -> str:
    """Replace a leading `~` by the home folder here, because the quotes of a job script would keep a shell from it."""
    return str(local_path(text)) if text.startswith("~") else text


def _as_host_list(value: Any) -> Any:
    """Accept one text such as `node[1-3,7],login1`, which overrides give, in place of a list."""
    return (value,) if isinstance(value, str) else value


def _host_list(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            expand([value])
        except ValueError as error:
            raise ValueError(f"{value!r} {error}") from None
    return tuple(member for value in values for member in split(value))


Text = Annotated[str, Field(min_length=1), AfterValidator(one_line)]
Folder = Annotated[Text, AfterValidator(_home)]
Time = Annotated[Text, AfterValidator(_time)]
Memory = Annotated[Text, AfterValidator(_memory)]
HostList = Annotated[tuple[Text, ...], BeforeValidator(_as_host_list), AfterValidator(_host_list)]


class Container(Section):
    """The container in which Python runs."""

    image: Folder = Field(description="image: a .sif file, a .sqsh file or an address such as docker://…")
    runtime: Literal["apptainer", "singularity", "pyxis"] = Field(
        "apptainer", description="apptainer, singularity: that command; pyxis: srun's --container-image"
    )
    mounts: tuple[Folder, ...] = Field((), description="folders visible inside, FOLDER or FOLDER:INSIDE, such as data")


class Preflight(Section):
    """The check of every node before ranks are started on it."""

    enabled: bool = Field(True, description="check the nodes at every start")
    timeout_seconds: Positive = Field(300, description="a node that does not answer for so many seconds is bad")
    min_memory_gib: float = Field(1.0, ge=0, description="memory that must be available, GiB")
    min_disk_gib: float = Field(
        1.0, ge=0, description="space that must be free in the run's folder and in `folders`, GiB"
    )
    folders: tuple[Folder, ...] = Field((), description="folders of a node that must be writable, such as /scratch")
    max_clock_skew_seconds: float = Field(5.0, gt=0, description="largest difference from the other nodes' clocks")
    all_reduce_mib: Positive = Field(16, description="size of the test all-reduce between all nodes, MiB")


class DataJobs(Section):
    """The jobs of `submit.py --prepare-data`; time and partition default to those of the profile."""

    cpus: Positive = Field(1, description="cores of each task; data.prepare.workers follows them")
    memory: Memory | None = Field(None, description="memory of each task")
    time: Time | None = Field(None, description="time limit of each job")
    partition: Text | None = Field(None, description="partition without GPUs, if there is one")


class ClusterProfile(Section):
    """The profile of a cluster: what Slurm needs beside a run's configuration."""

    partition: Text | None = Field(None, description="partition; default: the cluster's")
    account: Text | None = Field(None, description="account that is charged")
    qos: Text | None = Field(None, description="quality of service")
    reservation: Text | None = Field(None, description="reservation to run in")
    time: Time = Field(
        description="time limit of one job, HH:MM:SS or D-HH:MM:SS; the run continues in as many jobs as it needs"
    )
    nodes: Positive = Field(1, description="nodes")
    ranks_per_node: Positive = Field(1, description="ranks on each node: one for each GPU")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of each node; 0: train on the CPU")
    gpu_type: Text | None = Field(None, description="Slurm's name of the type of GPU, such as h100")
    cpus_per_rank: Positive = Field(1, description="cores of each rank")
    memory: Memory | None = Field(None, description="memory of each node, such as 400G; 0M: all of it")
    constraint: Text | None = Field(None, description="features that nodes must have")
    exclude: HostList = Field((), description="nodes that are never used: names, or lists such as node[1-3,7]")
    sbatch: tuple[Text, ...] = Field((), description="further options of sbatch, such as --mail-type=END")
    modules: tuple[Text, ...] = Field((), description="environment modules to load")
    venv: Folder | None = Field(None, description="folder of a virtual environment")
    container: Container | None = Field(None, description="container in which Python runs")
    variables: dict[Text, Text] = Field(default_factory=dict, description="environment variables of every rank")
    signal_seconds: int = Field(
        300, ge=60, le=65535, description="the run is asked to save so many seconds before the time limit"
    )
    max_attempts: Positive = Field(3, description="the run ends after so many starts without a new checkpoint")
    preflight: Preflight = Field(default_factory=Preflight)
    data: DataJobs = Field(default_factory=DataJobs)

    @model_validator(mode="after")
    def _fits(self) -> "ClusterProfile":
        problems = []
        if self.gpus_per_node and self.ranks_per_node > self.gpus_per_node:
            problems.append(
                f"ranks_per_node: {self.ranks_per_node} ranks on {self.gpus_per_node} GPUs (gpus_per_node), but each "
                "rank needs a GPU of its own; lower ranks_per_node"
            )
        if self.gpu_type and not self.gpus_per_node:
            problems.append("gpu_type: set, but gpus_per_node is 0; set gpus_per_node")
        if self.container and self.venv:
            problems.append("venv: set together with container, but Python comes from one of them; remove the other")
        if minutes(self.time) * 60 <= self.signal_seconds:
            problems.append(
                f"signal_seconds: {self.signal_seconds} must be less than time {self.time}, or the run would be asked "
                "to save before it starts; lower signal_seconds or raise time"
            )
        if bad := [name for name in self.variables if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)]:
            problems.append(f"variables: {bad[0]!r} cannot be the name of an environment variable; rename it")
        if bad := [name for name, value in self.variables.items() if without_secret(value) != value]:
            problems.append(
                f"variables.{bad[0]}: holds a password, which would be written into the job script; export it instead"
            )
        if bad := [option for option in self.sbatch if not option.startswith("-")]:
            problems.append(f"sbatch: {bad[0]!r} is not an option of sbatch; write it like --mail-type=END")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def excluded_nodes(self) -> list[str]:
        """The names in the host lists of `exclude`."""
        return expand(self.exclude)

    @property
    def ranks(self) -> int:
        """Number of ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    def python(self, visible: Sequence[Path]) -> list[str]:
        """Return the words that start Python; a container gets the folders `visible` beside its mounts."""
        if self.container is None:
            return ["python"] if self.venv or self.modules else [sys.executable]
        if self.container.runtime == "pyxis":
            return ["python"]
        binds = ",".join([*dict.fromkeys(str(path) for path in visible), *self.container.mounts])
        gpu = ["--nv"] if self.gpus_per_node else []
        return [self.container.runtime, "exec", *gpu, "--bind", binds, self.container.image, "python"]


def load_profile(path: Path, overrides: Sequence[str] = ()) -> ClusterProfile:
    """Read a profile and apply overrides `cluster.KEY=VALUE`. Raises `ConfigError` that lists every problem."""
    try:
        raw = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--config", "--cluster").replace("quickstart", "cluster/local")) from None
    try:
        for override in overrides:
            apply_override(raw, override.removeprefix(PREFIX))
        return ClusterProfile.model_validate(fit(raw, ClusterProfile))
    except ValidationError as error:
        lines = "\n".join(explain(problem, ClusterProfile) for problem in error.errors()).splitlines()
        raise ConfigError("\n".join(PREFIX + line for line in lines)) from None
