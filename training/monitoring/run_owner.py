"""The process that trains a run, and whether it is still alive."""

import getpass
import json
import os
import socket
import sys
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_prep.files import parse_json
from training.cluster.job_state import job_state

Liveness = Literal["alive", "dead", "unknown"]
# states in Slurm of a job whose processes have ended
_ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"),
    *("DEADLINE", "PENDING", "REQUEUED", "REQUEUE_HOLD"),
)


@dataclass(frozen=True)
class RunOwner:
    """The process that owns a run's folder.

    `boot_id` and `pid_namespace` identify the PID namespace in which `pid` is valid: containers on one machine have the
    same boot_id and different namespaces. They are empty where the system does not provide them.
    """

    token: str = ""  # unique for each attempt to take the lock
    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    process_start: int = 0  # clock ticks from boot to the start of the process
    user: str = ""
    program: str = ""
    since: float = 0.0  # seconds since the epoch
    slurm_job: str = ""
    slurm_restart: int = 0  # how often Slurm has requeued the job
    slurm_cluster: str = ""
    released: bool = False  # the process has given the lock back

    @classmethod
    def this_process(cls) -> "RunOwner":
        """Return this process, with a new token."""
        env = os.environ
        job = env.get("SLURM_JOB_ID", "")
        if job and "SLURM_ARRAY_JOB_ID" in env:
            job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
        restart = env.get("SLURM_RESTART_COUNT", "0")
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot_id=_text(Path("/proc/sys/kernel/random/boot_id")),
            pid_namespace=_link(Path("/proc/self/ns/pid")),
            pid=os.getpid(),
            process_start=_process(os.getpid())[1],
            user=_user(),
            program=Path(sys.argv[0]).name,
            since=time.time(),
            slurm_job=job,
            slurm_restart=int(restart) if restart.isdigit() else 0,
            slurm_cluster=env.get("SLURM_CLUSTER_NAME", ""),
        )

    @classmethod
    def from_json(cls, text: str) -> "RunOwner":
        """Return the owner that `to_json` wrote; an empty one for any other text."""
        try:
            raw: dict[str, Any] = parse_json(text)
            found = {f.name: raw[f.name] for f in fields(cls) if type(raw.get(f.name)) is type(f.default)}
            return cls(**found)
        except (ValueError, AttributeError):
            return cls()

    def to_json(self) -> str:
        """Return the owner as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        program = f" ({self.program} of {self.user})" if self.program else ""
        job = f", Slurm job {self.slurm_job}," if self.slurm_job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid or '?'}{program} on {self.host or 'an unknown machine'}{job} since {since}"

    @property
    def way_to_stop(self) -> str:
        """The command with which a person stops this process."""
        if self.slurm_job:
            return f"scancel {self.slurm_job}"
        return f"kill -TERM {self.pid} on {self.host}" if self.pid else "stop the process that writes there"


def liveness_of(owner: RunOwner, me: RunOwner) -> Liveness:
    """Return whether the process `owner` is alive, as far as `me` can tell.

    - In the same PID namespace: alive when a process with its PID exists and has its start time.
    - An earlier start of the same Slurm job: dead, because Slurm ends all processes of a job before it restarts it.
    - Another Slurm job: dead when Slurm reports that the job has ended, alive while it is suspended.
    - Otherwise unknown: only its heartbeat tells.
    """
    if owner.boot_id and (owner.boot_id, owner.pid_namespace) == (me.boot_id, me.pid_namespace):
        alive, start = _process(owner.pid)
        return "alive" if alive and start == owner.process_start else "dead"
    same_cluster = not (owner.slurm_cluster and me.slurm_cluster) or owner.slurm_cluster == me.slurm_cluster
    if not owner.slurm_job or not same_cluster:
        return "unknown"
    if owner.slurm_job == me.slurm_job:
        return "dead" if me.slurm_restart > owner.slurm_restart else "unknown"
    try:
        job = job_state(owner.slurm_job)
    except ValueError:
        return "unknown"
    if job is not None and job.state == "SUSPENDED":
        return "alive"
    return "dead" if job is not None and job.state in _ENDED else "unknown"


def _process(pid: int) -> tuple[bool, int]:
    """Return whether a process is alive, and the clock ticks from boot to its start.

    A zombie (killed, but not yet waited for by its parent) is not alive, unless it still has threads.
    """
    words = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()  # the name may contain spaces and parentheses
    if len(words) < 20:
        return False, 0
    state, threads, start = words[0], int(words[17]), int(words[19])
    return state not in "ZX" or threads > 1, start


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container, a user id without a name
        return str(os.getuid())
