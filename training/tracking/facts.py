"""Facts about a run beside its metrics: code version, machine, phases, starts, and how each attempt ended."""

import calendar
import getpass
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import one_line
from data_prep.files import lines_of, write_text
from training.errors import BAD_INPUT
from training.logs import without_secret
from training.tracking.store import Status
from training.version import __version__

RUN_ID_FILE = "mlflow_run_id"
STARTS_FILE = "starts.jsonl"
END_FILE = "ended.json"
ENVIRONMENT_FILE = "environment.txt"
STAMP = "%Y-%m-%dT%H:%M:%SZ"  # how the time of a start is written
# Files of a run's folder that are sent to MLflow if they exist: the first at every start, all at every end.
AT_START = ("config.yaml", ENVIRONMENT_FILE, "submit.sbatch")
AT_END = ("loss.png", "report.html", "metrics.jsonl", STARTS_FILE, "log/rank-0.log")
# Slurm's environment variables of a job, and the tags they become.
_SLURM = {
    "SLURM_JOB_ID": "slurm.job_id",
    "SLURM_JOB_NAME": "slurm.job_name",
    "SLURM_JOB_PARTITION": "slurm.partition",
    "SLURM_JOB_ACCOUNT": "slurm.account",
    "SLURM_JOB_QOS": "slurm.qos",
    "SLURM_JOB_NODELIST": "slurm.nodes",
    "SLURM_JOB_NUM_NODES": "slurm.node_count",
    "SLURM_ARRAY_JOB_ID": "slurm.array_job_id",
    "SLURM_ARRAY_TASK_ID": "slurm.array_task_id",
    "SLURM_RESTART_COUNT": "slurm.restart_count",
    "SLURM_CLUSTER_NAME": "slurm.cluster",
}
_PROJECT = Path(__file__).resolve().parents[2]


def artifacts_of(run_folder: Path, *, at_start: bool = False) -> list[Path]:
    """Return the existing files of the run that are sent to MLflow."""
    names = AT_START if at_start else AT_START + AT_END
    return [run_folder / name for name in names if (run_folder / name).is_file()]


def read_run_id(run_folder: Path) -> str:
    """Return the id of the folder's MLflow run; empty when it has none."""
    try:
        return (run_folder / RUN_ID_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def place_tags(world_size: int) -> dict[str, str]:
    """Return tags about this process: user, command, host, number of ranks, version, git, Slurm."""
    command = without_secret(shlex.join([Path(sys.executable).name, *sys.argv]))
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "JOB",
        "command": command,
        "host": platform.node(),
        "world_size": str(world_size),
        "memtrain.version": __version__,
    }
    tags |= {tag: os.environ[name] for name, tag in _SLURM.items() if os.environ.get(name)}
    return tags | _git_tags()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container, a user id without a name
        return str(os.getuid())


def _git_tags() -> dict[str, str]:
    """Return tags about the git checkout of this project; empty when the code is not in a checkout of its own."""
    if _git("rev-parse", "--show-toplevel") != str(_PROJECT):
        return {}
    commit, branch = _git("rev-parse", "HEAD"), _git("rev-parse", "--abbrev-ref", "HEAD")
    if not commit:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    dirty = {} if changed is None else {"git.dirty": "true" if changed else "false"}
    return {"mlflow.source.git.commit": commit, "git.commit": commit, "git.branch": branch or ""} | dirty


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _PROJECT, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment_text() -> str:
    """Return Python's version, the platform and all installed distributions, in the form of `pip freeze`."""
    found = [distribution.metadata for distribution in importlib.metadata.distributions()]  # parses a file each time
    every = {metadata["Name"]: metadata["Version"] for metadata in found if metadata["Name"]}
    lines = [f"# python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name}=={every[name]}" for name in sorted(every, key=str.lower)]
    return "\n".join(lines) + "\n"


def phase_tags(phases: Sequence[Any], current: int, over: bool) -> dict[str, str]:
    """Return the phases as tags: `phase.0.name` and so on, and `phase`, the name of the present one.

    Args:
        phases: those of a `RunConfig`.
        current: index of the present phase.
        over: whether it is finished.
    """
    tags, first = {"phase": phases[current].name}, 1
    for number, phase in enumerate(phases):
        last = first + phase.steps - 1
        done = number < current or (over and number == current)
        tags |= {
            f"phase.{number}.name": phase.name,
            f"phase.{number}.memory": "on" if phase.memory else "off",
            f"phase.{number}.steps": f"{first}-{last}",
            f"phase.{number}.tokens": str(phase.steps * phase.tokens_per_step),
            f"phase.{number}.state": "done" if done else "training" if number == current else "waiting",
        }
        first = last + 1
    return tags


def read_starts(run_folder: Path) -> list[dict[str, Any]]:
    """Return every start of the run, oldest first: time, host, world size, step it continued from, Slurm job."""
    try:
        lines = lines_of((run_folder / STARTS_FILE).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            start = json.loads(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            found.append(start)
    return found


def first_start(run_folder: Path) -> float | None:
    """Return when the run was first started, in seconds since the epoch; None when it is unknown."""
    try:
        stamp = read_starts(run_folder)[0]["time"]
        return float(calendar.timegm(time.strptime(stamp, STAMP)))
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def this_start(after_step: int, world_size: int) -> dict[str, Any]:
    """Return the line of `starts.jsonl` for this start.  after_step: last step of the checkpoint it continues from."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and (array := os.environ.get("SLURM_ARRAY_JOB_ID")):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    stamp = time.strftime(STAMP, time.gmtime())
    start = {"time": stamp, "host": platform.node(), "world_size": world_size, "after_step": after_step}
    return start | ({"slurm_job": job} if job else {})


def add_start(run_folder: Path, start: dict[str, Any]) -> None:
    """Append a start to `starts.jsonl`, and delete the file about the end of the attempt before."""
    (run_folder / END_FILE).unlink(missing_ok=True)
    with (run_folder / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


@dataclass(frozen=True)
class End:
    """How an attempt of a run ended."""

    status: Status
    state: str  # in words
    exit_code: int
    signal: str = ""  # name of the signal that stopped it
    exception: str = ""  # type and text of the exception that ended it

    @classmethod
    def of(cls, error: BaseException, step: int | None) -> "End":
        """Return the end of an attempt by `error` after `step`; None: before training began."""
        text = f"{type(error).__name__}: {one_line(error, 500)}"
        when = "at its start" if step is None else f"after step {step}"
        return cls("FAILED", f"failed {when}: {text}", 2 if isinstance(error, BAD_INPUT) else 1, exception=text)


def write_end(run_folder: Path, end: End, *, first: bool = False) -> None:
    """Write how this attempt ended; a killed attempt leaves no such file.

    first: write only when there is no such file yet, for ranks that end because of another rank's failure.
    """
    if not (first and (run_folder / END_FILE).exists()):
        state, exception = without_secret(end.state), without_secret(end.exception)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        raw = {"time": stamp} | asdict(end) | {"state": state, "exception": exception}
        write_text(run_folder / END_FILE, json.dumps(raw) + "\n")


def read_end(run_folder: Path) -> tuple[str, str]:
    """Return (status, state in words) of the last attempt's end; empty when it was killed or is running."""
    try:
        end = json.loads((run_folder / END_FILE).read_text(encoding="utf-8"))
        return str(end["status"]), str(end["state"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", ""


def start_tags(starts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the tags `restarts`, the number of starts after the first, and `restart.N`, which describes the last."""
    tags, number = {"restarts": str(len(starts) - 1)}, len(starts) - 1
    if number:
        last = starts[-1]
        job = f", Slurm job {last['slurm_job']}" if "slurm_job" in last else ""
        tags[f"restart.{number}"] = (
            f"{last['time']}: after step {last['after_step']}, {last['world_size']} ranks, {last['host']}{job}"
        )
    return tags
