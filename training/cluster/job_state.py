"""What Slurm says of a job: squeue, then scontrol, then sacct; sites differ in what they keep and for how long."""

import re
import shutil
import subprocess
from dataclasses import dataclass

_JOB = re.compile(r"\d+(_\d+)?")
_WAIT = 10  # seconds for a command


@dataclass(frozen=True)
class Job:
    """A Slurm job, as far as it is known."""

    id: str
    state: str  # PENDING, RUNNING, COMPLETED, ..., or UNKNOWN
    reason: str = ""  # why it waits, or how it ended
    nodes: str = ""
    time_left: str = ""
    source: str = ""  # the command that knew it

    @property
    def waits(self) -> bool:
        """Whether it has yet to run, or is on its way to running again."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")

    @property
    def runs(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING")


def job_state(job: str) -> Job | None:
    """The state of job `job` (`123` or `123_4`); `None` where there is no Slurm.

    Raises:
        ValueError: `job` is no job's number.
    """
    if not _JOB.fullmatch(job):
        raise ValueError(f"{job!r} is no Slurm job's number")
    commands = [ask for ask in (_squeue, _scontrol, _sacct) if shutil.which(ask.__name__[1:])]
    if not commands:
        return None
    return next((found for ask in commands if (found := ask(job))), Job(job, "UNKNOWN", "no command of Slurm knows it"))


def _squeue(job: str) -> Job | None:
    # a job array's last task and its array share a number: the first line is of the one asked for
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
    state, code, nodes = lines[-1].split("|", 2)  # a requeued job has a line for each time
    # CANCELLED by 1000
    return Job(job, state.split()[0], "" if code == "0:0" else f"exit code {code}", nodes, "", "sacct")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_WAIT).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
