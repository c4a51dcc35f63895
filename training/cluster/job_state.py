"""The state of a Slurm job, from squeue, scontrol or sacct: clusters differ in which of them know a job, how long."""

import re
import shutil
import subprocess
from dataclasses import dataclass

_JOB = re.compile(r"\d+(_\d+)?")
_WAIT = 10  # seconds for a command


@dataclass(frozen=True)
class Job:
    """What Slurm reports about a job."""

    id: str
    state: str  # PENDING, RUNNING, COMPLETED, ..., or UNKNOWN
    reason: str = ""  # why it waits, or how it ended
    nodes: str = ""
    time_left: str = ""
    source: str = ""  # the command that reported it

    @property
    def waits(self) -> bool:
        """Whether it waits for its first or its next start."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")

    @property
    def runs(self) -> bool:
        """Whether its processes run."""
        return self.state in ("RUNNING", "COMPLETING")


def job_state(job: str) -> Job | None:
    """Return the state of job `job` (`123` or `123_4`); `None` on a machine without Slurm.

    Raises:
        ValueError: `job` is not a job's number.
    """
    if not _JOB.fullmatch(job):
        raise ValueError(f"{job!r} is not a Slurm job's number")
    commands = [ask for ask in (_squeue, _scontrol, _sacct) if shutil.which(ask.__name__[1:])]
    if not commands:
        return None
    return next((found for ask in commands if (found := ask(job))), Job(job, "UNKNOWN", "no command of Slurm knows it"))


def _squeue(job: str) -> Job | None:
    # the last task of a job array and the array have the same number: the first line is about the requested one
    lines = _output("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%N|%L").splitlines()
    if not lines or lines[0].count("|") < 3:
        return None
    state, reason, nodes, left = lines[0].split("|", 3)
    return Job(job, state, "" if reason == "None" else reason, nodes, left, "squeue")


def _scontrol(job: str) -> Job | None:
    fields = dict(re.findall(r"(\w+)=(\S*)", _output("scontrol", "--oneliner", "show", "job", job).partition("\n")[0]))
    if "JobState" not in fields:
        return None
    reason, nodes = fields.get("Reason", "None"), fields.get("NodeList", "")
    end = f"exit code {fields['ExitCode']}" if fields.get("ExitCode", "0:0") != "0:0" else ""
    nodes = "" if nodes == "(null)" else nodes
    return Job(job, fields["JobState"], end if reason == "None" else reason, nodes, "", "scontrol")


def _sacct(job: str) -> Job | None:
    lines = _output(
        "sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State,ExitCode,NodeList"
    ).splitlines()
    if not lines or lines[-1].count("|") < 2:
        return None
    state, code, nodes = lines[-1].split("|", 2)  # a requeued job has a line for each start
    # the state may be "CANCELLED by 1000"
    return Job(job, state.split()[0], "" if code == "0:0" else f"exit code {code}", nodes, "", "sacct")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_WAIT).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
