"""What MLflow is told of a run beside its numbers: where the code and the machine stand, its phases, its starts."""

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
# Files of a run's folder that MLflow gets, where they are: at every start, and at every end also the others.
AT_START = ("config.yaml", ENVIRONMENT_FILE, "submit.sbatch")
AT_END = ("loss.png", "report.html", "metrics.jsonl", STARTS_FILE, "log/rank-0.log")
# What Slurm says of a job, and the tag it becomes.
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
    """The files of the run that belong into MLflow, as far as they are there."""
    names = AT_START if at_start else AT_START + AT_END
    return [run_folder / name for name in names if (run_folder / name).is_file()]


def read_run_id(run_folder: Path) -> str:
    """The MLflow run of this folder, or nothing."""
    try:
        return (run_folder / RUN_ID_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def place_tags(world_size: int) -> dict[str, str]:
    """Who runs what where: user, command, host, ranks, version, git, Slurm."""
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
    except (OSError, KeyError):  # a container's number without a name
        return str(os.getuid())


def _git_tags() -> dict[str, str]:
    """The state of this project's code; nothing where it is no git checkout, as in another project's environment."""
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
    """Interpreter, machine and every installed distribution with its version, as `pip freeze` writes them."""
    every = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    lines = [f"# python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name}=={every[name]}" for name in sorted(every, key=str.lower)]
    return "\n".join(lines) + "\n"


def phase_tags(phases: Sequence[Any], current: int, over: bool) -> dict[str, str]:
    """The phases as nested tags, `phase.0.name` and so on, and `phase`, the one being trained.

    Args:
        phases: of a `RunConfig`.
        current: number of the phase being trained.
        over: it is done too.
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
    """Every start of the run, oldest first: time, host, world size, step it went on from, Slurm job."""
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
    """When the run was first started, in seconds since 1970; None when that is not known."""
    try:
        stamp = read_starts(run_folder)[0]["time"]
        return float(calendar.timegm(time.strptime(stamp, STAMP)))
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def this_start(after_step: int, world_size: int) -> dict[str, Any]:
    """The line of `starts.jsonl` for this process."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and (array := os.environ.get("SLURM_ARRAY_JOB_ID")):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    stamp = time.strftime(STAMP, time.gmtime())
    start = {"time": stamp, "host": platform.node(), "world_size": world_size, "after_step": after_step}
    return start | ({"slurm_job": job} if job else {})


def add_start(run_folder: Path, start: dict[str, Any]) -> None:
    """Append it to `starts.jsonl`; how the life before ended is over with."""
    (run_folder / END_FILE).unlink(missing_ok=True)
    with (run_folder / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


@dataclass(frozen=True)
class End:
    """How an attempt of a run ended."""

    status: Status
    state: str  # in words
    exit_code: int
    signal: str = ""  # name of the one that stopped it
    exception: str = ""  # type and text of the one that ended it

    @classmethod
    def of(cls, error: BaseException, step: int | None) -> "End":
        """Return the end by `error` after `step`; None: before the first one of this attempt."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        when = "at its start" if step is None else f"after step {step}"
        return cls("FAILED", f"failed {when}: {text}", 2 if isinstance(error, BAD_INPUT) else 1, exception=text)


def write_end(run_folder: Path, end: End, *, first: bool = False) -> None:
    """Write how this attempt ended; a killed one leaves no such file.

    first: only where nobody has written yet; for ranks that end because of another, which may have said why.
    """
    if not (first and (run_folder / END_FILE).exists()):
        state, exception = without_secret(end.state), without_secret(end.exception)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        raw = {"time": stamp} | asdict(end) | {"state": state, "exception": exception}
        write_text(run_folder / END_FILE, json.dumps(raw) + "\n")


def read_end(run_folder: Path) -> tuple[str, str]:
    """(status, state in words) that the last life ended with; empty when it was killed, or goes on."""
    try:
        end = json.loads((run_folder / END_FILE).read_text(encoding="utf-8"))
        return str(end["status"]), str(end["state"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", ""


def start_tags(starts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """`restarts`, how many starts followed the first, and what is known of the last of them."""
    tags, number = {"restarts": str(len(starts) - 1)}, len(starts) - 1
    if number:
        last = starts[-1]
        job = f", Slurm job {last['slurm_job']}" if "slurm_job" in last else ""
        tags[f"restart.{number}"] = (
            f"{last['time']}: after step {last['after_step']}, {last['world_size']} ranks, {last['host']}{job}"
        )
    return tags
