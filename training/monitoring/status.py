"""The status of a run, read from its folder and from Slurm where there is one; nothing is written."""

import contextlib
import os
import re
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from training.checkpoint.manifest import latest_checkpoint, step_of
from training.cluster.job_state import Job, job_state
from training.config import RunConfig, load_config
from training.errors import ConfigError, TrainingError
from training.faults.watchdog import Beat, read_beat
from training.monitoring.goodput import goodput, trained_seconds
from training.monitoring.records import last_lines
from training.schedule import position
from training.tracking import facts

SILENT_SECONDS = 15.0  # a rank's thread writes its heartbeat every second
RECENT = 20  # last steps whose speed is used to estimate the time left
ERRORS = 5  # warnings and errors that are shown
JOBS = 8  # last jobs of a run that Slurm is asked about
_TAIL = 64 * 1024  # bytes at the end of a rank's log that are read
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (WARNING|ERROR|CRITICAL)\s+(?!py\.warnings)\S+\s+(.*)")


@dataclass(frozen=True)
class Heartbeat:
    """A rank's last heartbeat, and whether the rank is alive."""

    beat: Beat
    age: float  # seconds since it was written
    alive: bool


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    folder: Path
    name: str
    state: str  # finished, training, hanging, waiting, starting, stopped, failed, dead, new
    about: str  # the state in more words
    phase: str
    step: int
    steps: int
    tokens: int
    total_tokens: int
    loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    goodput: float | None  # fraction of `wall_seconds` spent in steps that count, 0..1
    wall_seconds: float | None  # from the first start until now, or until the run's end
    eta_seconds: float | None
    checkpoint_step: int | None
    checkpoint_age: float | None  # seconds
    starts: Sequence[dict[str, Any]]
    heartbeats: Sequence[Heartbeat]
    world_size: int
    errors: Sequence[str]
    job: Job | None
    excluded_nodes: Sequence[str]  # nodes that failed a check and are not used again
    mlflow_run_id: str

    @property
    def restarts(self) -> int:
        """Number of starts after the first."""
        return max(0, len(self.starts) - 1)

    def to_json(self) -> dict[str, Any]:
        """Return all fields in types that JSON has."""
        known = dict(vars(self)) | {"folder": str(self.folder), "job": self.job and vars(self.job)}
        ranks = [vars(h.beat) | {"age": round(h.age, 1), "alive": h.alive} for h in self.heartbeats]
        return known | {"heartbeats": ranks, "restarts": self.restarts, "errors": list(self.errors)}


def status_of(run_folder: Path) -> Status:
    """Return the status of the run in `run_folder`. Raises `ConfigError` when it is not a run's folder."""
    path, starts = run_folder / "config.yaml", facts.read_starts(run_folder)
    job = _job_of(run_folder, starts)
    if not path.is_file() and job is None:
        raise ConfigError(f"{run_folder}: is not a run's folder, it has no config.yaml; pass one such as runs/NAME")
    config = load_config(path) if path.is_file() else None
    lines = last_lines(run_folder / "metrics.jsonl")
    steps, evaluations = ([line for line in lines if kind in line] for kind in ("loss", "valid_loss"))
    latest, damage = _latest(run_folder)
    saved = step_of(latest) if latest else None
    step = max([line["step"] for line in steps] + [saved or 0])
    ranks, world = heartbeats(run_folder), int(starts[-1]["world_size"]) if starts else 0
    total = config.total_steps if config else 0
    state, about = _state(total, saved, step, ranks, world, job, facts.read_end(run_folder))
    phase, tokens = _where(config, step)
    speed, left = _speed(steps[-RECENT:]), (config.total_tokens if config else 0) - tokens
    began, until = facts.first_start(run_folder), _until(run_folder, state)
    return Status(
        folder=run_folder,
        name=config.run.name if config else run_folder.name,
        state=state,
        about=about,
        phase=phase,
        step=step,
        steps=total,
        tokens=tokens,
        total_tokens=tokens + left,
        loss=steps[-1]["loss"] if steps else None,
        valid_loss=evaluations[-1]["valid_loss"] if evaluations else None,
        tokens_per_second=speed,
        goodput=goodput(trained_seconds(run_folder / "metrics.jsonl"), began, until),
        wall_seconds=until - began if began is not None else None,
        eta_seconds=left / speed if speed and state == "training" else None,
        checkpoint_step=saved,
        checkpoint_age=time.time() - latest.stat().st_mtime if latest else None,
        starts=starts,
        heartbeats=ranks,
        world_size=world,
        errors=[*_last_errors(run_folder / "log"), *damage],
        job=job,
        excluded_nodes=_words(run_folder / "slurm" / "excluded-nodes"),
        mlflow_run_id=facts.read_run_id(run_folder),
    )


def _until(run_folder: Path, state: str) -> float:
    """Return the present time; for a run that has ended, when it last wrote a file (seconds since the epoch)."""
    if state in ("training", "hanging", "waiting", "starting"):
        return time.time()
    files = [run_folder / name for name in ("metrics.jsonl", facts.STARTS_FILE, facts.END_FILE)]
    return max((path.stat().st_mtime for path in files if path.is_file()), default=time.time())


def _where(config: RunConfig | None, step: int) -> tuple[str, int]:
    """Return the phase of step `step`, and the tokens seen up to it."""
    if config is None:
        return "", 0
    at = position(config.phases, config.data.sequence_length, max(0, min(step, config.total_steps) - 1))
    phase = config.phases[at.phase_index]
    return phase.name, at.tokens + (phase.tokens_per_step if step else 0)


def _latest(run_folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and the message about damage when there are only damaged ones."""
    try:
        return latest_checkpoint(run_folder / "checkpoints"), []
    except TrainingError as error:
        return None, [str(error)]


def heartbeats(run_folder: Path) -> list[Heartbeat]:
    """Return every rank's last heartbeat, sorted by rank.

    A rank that ended normally has removed its file; a killed one has left an old file.
    """
    now, found = time.time(), []
    for path in (run_folder / "log").glob("heartbeat-rank-*.json"):
        if beat := read_beat(path):
            age = max(0.0, now - beat.alive)
            gone = beat.host == socket.gethostname() and not psutil.pid_exists(beat.pid)
            found.append(Heartbeat(beat, age, age < SILENT_SECONDS and not gone))
    return sorted(found, key=lambda heartbeat: heartbeat.beat.rank)


def _state(
    steps: int,
    saved: int | None,
    step: int,
    ranks: Sequence[Heartbeat],
    world: int,
    job: Job | None,
    end: tuple[str, str],
) -> tuple[str, str]:
    """Return the run's state in one word, and a description of it."""
    if saved and steps and saved >= steps:
        return "finished", f"all {steps} steps"
    living = [heartbeat.beat for heartbeat in ranks if heartbeat.alive]
    if living:
        silent = sorted(set(range(world)) - {beat.rank for beat in living})
        if silent:
            return "hanging", f"no sign of life from rank {', '.join(map(str, silent[:8]))} of {world}"
        behind = min(living, key=lambda beat: beat.since)
        return "training", f"step {behind.step}" if behind.doing == "step" else behind.doing
    if job and job.waits:
        return "waiting", f"Slurm job {job.id} {job.state}{f': {job.reason}' if job.reason else ''}"
    if job and job.runs:
        return "starting", f"Slurm job {job.id} runs, no rank has begun"
    goes_on = f"the same command continues after step {saved}" if saved else "the same command starts it anew"
    status, how = end
    if how:
        return {"FAILED": "failed"}.get(status, "stopped"), how if "saved" in how else f"{how}; {goes_on}"
    if step or ranks:
        return "dead", f"ended without a message after step {step}; {goes_on}"
    return "new", f"no step yet; {goes_on}"


def _speed(steps: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean tokens per second over the time of these steps; None when it is unknown."""
    speeds = [line["tokens_per_second"] for line in steps if line.get("tokens_per_second")]
    return statistics.harmonic_mean(speeds) if speeds else None


def _job_of(run_folder: Path, starts: Sequence[dict[str, Any]]) -> Job | None:
    """Return the run's Slurm job that runs, else one that waits, else the last one; None when there is none."""
    named = [*_words(run_folder / "slurm" / "jobs"), *(str(start.get("slurm_job", "")) for start in starts)]
    jobs = []
    for name in list(dict.fromkeys(name for name in reversed(named) if name))[:JOBS]:
        with contextlib.suppress(ValueError):
            jobs.append(job_state(name))
    found = [job for job in jobs if job is not None]
    return min(found, key=lambda job: (not job.runs, not job.waits), default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _last_errors(log_folder: Path) -> list[str]:
    """Return the last warnings and errors of all ranks, oldest first; equal ones of several ranks appear once."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for path in log_folder.glob("rank-*.log"):
        rank = int(path.stem.removeprefix("rank-")) if path.stem.removeprefix("rank-").isdigit() else -1
        for match in _LOG_LINE.finditer(_tail(path)):
            ranks.setdefault((match[1], f"{match[2]} {match[3]}"), []).append(rank)
    last = sorted(ranks.items())[-ERRORS:]
    return [f"{when} {_ranks(who)}: {text}" for (when, text), who in last]


def _ranks(who: Sequence[int]) -> str:
    some = sorted(set(who))
    shown = ", ".join(map(str, some[:4]))
    return f"rank {shown}" if len(some) <= 4 else f"{len(some)} ranks ({shown}, …)"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        return file.read().decode("utf-8", errors="replace")
