"""Calls Slurm's commands: what nodes a cluster has, whether it can run a request, submission."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from training.cluster.profile import ClusterProfile, mebibytes, minutes
from training.errors import ConfigError

_ASK_SECONDS = 60


@dataclass(frozen=True)
class Node:
    """A node as sinfo shows it; memory in MiB."""

    name: str
    cpus: int
    memory: int
    gpus: dict[str, int]  # number by type; '' is a GPU without a type
    state: str
    features: frozenset[str]

    def gpu_count(self, kind: str | None) -> int:
        """Return the number of GPUs of type `kind`; None: of all types."""
        return sum(n for name, n in self.gpus.items() if kind in (None, name))

    @property
    def up(self) -> bool:
        """Whether the node is in service."""
        return not re.match(r"down|drain|drng|fail|maint|unk|boot|pow", self.state)


def has_slurm() -> bool:
    """Return whether this machine has sbatch."""
    return shutil.which("sbatch") is not None


def ask(*command: str, script: str | None = None) -> str:
    """Run a command of Slurm and return its output. Raises `ConfigError` with its message when it fails.

    script: standard input of the command.
    """
    # inside a job, the job's variables would be read as options of the new job
    env = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SBATCH_"))}
    try:
        done = subprocess.run(command, input=script, env=env, capture_output=True, text=True, timeout=_ASK_SECONDS)
    except FileNotFoundError:
        raise ConfigError(
            f"--cluster: this machine has no {command[0]}; run it on a machine from which jobs are submitted"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"--cluster: {command[0]} did not answer within {_ASK_SECONDS} s; check that Slurm's controller runs"
        ) from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split()).removeprefix(f"{command[0]}: error: ")
        raise ConfigError(f"--cluster: {command[0]} refuses: {reason}")
    return done.stdout


def check_possible(profile: ClusterProfile, cpus_per_node: int | None = None) -> list[str]:
    """Raise `ConfigError` when the cluster can never run what the profile asks for; return lines worth knowing.

    Slurm accepts some such requests, and the job then waits for ever.
    """
    partitions = {name.rstrip("*"): name.endswith("*") for name in ask("sinfo", "-h", "-o", "%P").split()}
    partition = profile.partition or next((name for name, default in partitions.items() if default), None)
    if partition is None or not set(partition.split(",")) <= partitions.keys():
        asked = f"{partition!r} does not exist here" if partition else "missing, and the cluster has no default"
        raise ConfigError(f"cluster.partition: {asked}; choose one of {', '.join(sorted(partitions))}")
    problems = _limits(profile, partition.split(",")[0])
    nodes = nodes_of(partition)
    cpus = cpus_per_node or profile.cpus_per_rank * profile.ranks_per_node
    excluded = set(profile.excluded_nodes)
    reasons = {node.name: _unfit(node, profile, cpus, excluded) for node in nodes}
    fitting = [node for node in nodes if not reasons[node.name]]
    if len(fitting) < profile.nodes:
        why = sorted(f"{name}: {reason}" for name, reason in reasons.items() if reason)
        way_out = f"set cluster.nodes to {len(fitting)} or less" if fitting else "lower what each node must have"
        problems.append(
            f"cluster.nodes: {profile.nodes}, but {len(fitting)} of the {len(nodes)} nodes of partition {partition} "
            f"fit{' (' + '; '.join(why[:4]) + ')' if why else ''}; {way_out}, or choose another "
            f"cluster.partition: {', '.join(sorted(partitions))}"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    up = sum(node.up for node in fitting)
    return (
        [f"only {up} of the {len(fitting)} fitting nodes are up now: the job will wait"] if up < profile.nodes else []
    )


def _limits(profile: ClusterProfile, partition: str) -> list[str]:
    """Return which limits of the partition the profile exceeds."""
    text = ask("scontrol", "-o", "show", "partition", partition)
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    problems = []
    longest = fields.get("MaxTime", "UNLIMITED")
    if re.fullmatch(r"[\d:-]+", longest) and minutes(profile.time) > minutes(longest):
        problems.append(
            f"cluster.time: {profile.time} is more than the {longest} of partition {partition}; set it to {longest}: "
            "the run continues in as many jobs as it needs"
        )
    if fields.get("State", "UP") not in ("UP", "DOWN"):
        problems.append(f"cluster.partition: {partition} is {fields['State']} and takes no jobs; choose another")
    most = fields.get("MaxNodes", "UNLIMITED")
    if most.isdigit() and profile.nodes > int(most):
        problems.append(f"cluster.nodes: {profile.nodes}, but a job in {partition} may have at most {most}; lower it")
    return problems


def nodes_of(partition: str) -> list[Node]:
    """Return all nodes of a partition, in any state."""
    lines = ask("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%m|%G|%t|%f").splitlines()
    found = {}
    for line in lines:
        name, cpus, memory, gres, state, features = line.split("|", 5)
        gpus: dict[str, int] = {}
        for kind, count in re.findall(r"gpu:(?:([^:,(]+):)?(\d+)", gres):
            gpus[kind] = gpus.get(kind, 0) + int(count)
        cores, mib = (int(re.sub(r"\D", "", text) or 0) for text in (cpus, memory))
        found[name] = Node(name, cores, mib, gpus, state, frozenset(features.split(",")))
    return list(found.values())


def _unfit(node: Node, profile: ClusterProfile, cpus: int, excluded: set[str]) -> str:
    """Return why a node can never run a request; empty when it can."""
    if node.name in excluded:
        return "excluded (cluster.exclude, or slurm/excluded-nodes in the run's folder)"
    if node.cpus < cpus:
        return f"{node.cpus} cores, {cpus} asked"
    if profile.memory and node.memory < mebibytes(profile.memory):
        return f"{node.memory}M memory, {profile.memory} asked"
    if node.gpu_count(profile.gpu_type) < profile.gpus_per_node:
        kind = f" {profile.gpu_type}" if profile.gpu_type else ""
        return f"{node.gpu_count(profile.gpu_type)}{kind} GPUs, {profile.gpus_per_node} asked"
    wanted = profile.constraint or ""
    if re.fullmatch(r"[\w.&-]+", wanted) and not set(wanted.split("&")) <= node.features | {""}:
        return f"lacks feature {wanted}"
    return ""


def let_sbatch_check(script: str) -> None:
    """Let sbatch check a script's options (account, qos, limits). Raises `ConfigError` with sbatch's message."""
    ask("sbatch", "--test-only", script=script)


def submit(script: str, *arguments: str, options: Sequence[str] = ()) -> str:
    """Submit the script at the path `script`; return the job's id."""
    return ask("sbatch", "--parsable", *options, script, *arguments).strip().split(";")[0]


def active(job_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of those of the jobs that wait or run, by id."""
    states = {}
    for line in ask("squeue", "-h", "-o", "%A %T").splitlines():
        job, state = line.split()
        if job in job_ids:
            states[job] = state
    return states
