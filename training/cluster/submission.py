"""Submits a run or its data preparation to Slurm, after all checks that can be made before."""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import write_text
from data_prep.preparation.prepare import Preparation
from training.cluster import slurm
from training.cluster.hostlist import expand
from training.cluster.profile import ClusterProfile
from training.cluster.script import PROJECT, RunJob, evaluation_script, preparation_script, training_script
from training.distributed.ranks import RankInfo
from training.errors import BAD_INPUT, ConfigError

STATE = "slurm"  # folder in the run's folder, with files that its jobs share
_CHAIN = "--kill-on-invalid-dep=yes"  # without it, a job whose dependency has failed would wait for ever


@dataclass(frozen=True)
class SubmitOptions:
    """How a run is submitted."""

    phases_as_jobs: bool = False  # a job for each phase instead of one for the run
    after: tuple[str, ...] = ()  # ids of jobs that must have succeeded before
    evaluate: tuple[str, ...] = ()  # options of launchers/evaluate.py, for every kept checkpoint
    dry_run: bool = False


def submit_run(job: RunJob, profile: ClusterProfile, wish: SubmitOptions) -> list[str]:
    """Submit a run; return lines that say what was done and how to follow it.

    Raises one of `BAD_INPUT` before anything is written; a `ConfigError` lists all problems.
    """
    job.check()
    found_bad = [name for name in _found_bad(job) if name not in profile.excluded_nodes]
    profile = profile.model_copy(update={"exclude": (*profile.exclude, *sorted(found_bad))})
    script = training_script(job, profile, evaluation=bool(wish.evaluate))
    problems: list[str] = []
    lines: list[str] = []
    try:
        _check_run(job, profile, wish)
    except BAD_INPUT as error:
        problems.append(str(error))
    try:
        lines = _ask_cluster(profile, script, wish.dry_run)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if wish.dry_run:
        return [script, *(f"# {line}" for line in lines), f"# not submitted; this would be {job.script}"]
    state = job.run / STATE
    _refuse_second(job)
    for folder in (state, job.run / "log"):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "attempts").unlink(missing_ok=True)  # a person submits it again: count failed starts from 0
    write_text(job.script, script)
    if wish.evaluate:
        write_text(job.run / "evaluate.sbatch", evaluation_script(job, profile, wish.evaluate))
    jobs = _submit_chain(job, wish)
    with (state / "jobs").open("a", encoding="utf-8") as file:
        file.writelines(f"{number}\n" for number, _ in jobs)
    return lines + _summary(job, profile, jobs)


def _check_run(job: RunJob, profile: ClusterProfile, wish: SubmitOptions) -> None:
    """Make the checks that the ranks would make. Raises one of `BAD_INPUT`."""
    from training.distributed.topology import check_world
    from training.preflight import check

    alone = RankInfo(0, profile.ranks, 0)
    if wish.after:  # these jobs may prepare the data, so it cannot be checked yet
        check_world(job.config, alone)
    else:
        check(job.config, alone)
    if wish.evaluate and not (PROJECT / "launchers" / "evaluate.py").exists():
        raise ConfigError("--evaluate: there is no launchers/evaluate.py; leave it out")


def _ask_cluster(profile: ClusterProfile, script: str, dry_run: bool) -> list[str]:
    """Let Slurm check the request; return lines worth knowing. Raises `ConfigError`."""
    if dry_run and not slurm.has_slurm():
        return ["not compared with a cluster: this machine has no Slurm"]
    lines = slurm.check_possible(profile)
    slurm.let_sbatch_check(script)
    return lines


def _found_bad(job: RunJob) -> list[str]:
    """Return the nodes in `slurm/excluded-nodes`: those that earlier jobs found bad, and host lists added by hand."""
    path = job.run / STATE / "excluded-nodes"
    try:
        return expand(path.read_text(encoding="utf-8").split()) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"{path}: a line {error}; correct or delete that file") from None


def _refuse_second(job: RunJob) -> None:
    """Raise `ConfigError` when a job of this run waits or runs already."""
    path = job.run / STATE / "jobs"
    known = path.read_text(encoding="utf-8").split() if path.exists() else []
    if known and (busy := slurm.active(known)):
        shown = ", ".join(f"{number} ({state})" for number, state in busy.items())
        raise ConfigError(
            f"run.name: {job.config.run.name!r} already has job {shown}; wait for it, end it with scancel "
            f"{' '.join(busy)}, or choose another run.name"
        )


def _submit_chain(job: RunJob, wish: SubmitOptions) -> list[tuple[str, str]]:
    """Submit one job, or one for each phase that waits for the job before; return (job id, what it does) of each."""
    ends: list[int | None] = [None]
    names = [""]
    if wish.phases_as_jobs:
        phases = job.config.phases
        ends = [min(end, job.last_step) for end in itertools.accumulate(phase.steps for phase in phases)]
        names = [f"phase {phase.name}, to step {end}" for phase, end in zip(phases, ends, strict=True)]
    jobs: list[tuple[str, str]] = []
    before = ":".join(wish.after)
    for end, name in zip(ends, names, strict=True):
        options = [f"--dependency=afterok:{before}", _CHAIN] if before else []
        before = slurm.submit(str(job.script), *([] if end is None else [str(end)]), options=options)
        jobs.append((before, name))
    return jobs


def _summary(job: RunJob, profile: ClusterProfile, jobs: Sequence[tuple[str, str]]) -> list[str]:
    where = f"{profile.nodes} nodes x {profile.ranks_per_node} ranks"
    lines = [f"submitted job {number}: {name or job.config.run.name}, {where}" for number, name in jobs]
    first, run = jobs[0][0], shlex.quote(str(job.run))
    return [
        *lines,
        f"script:   {job.script}",
        f"queue:    squeue -j {','.join(number for number, _ in jobs)}",
        f"output:   tail -F {run}/log/slurm-{first}.out",
        f"state:    python launchers/status.py {run}",
        f"save now: scancel --signal=USR2 {first}     (it saves, is requeued and continues)",
        f"end:      scancel {' '.join(number for number, _ in jobs)}",
    ]


def submit_preparation(job: RunJob, profile: ClusterProfile, tasks: int, dry_run: bool) -> list[str]:
    """Submit the preparation of the run's data: a plan, an array of `tasks` tasks, and a merge when all succeeded.

    Finished tasks are not submitted again. Returns lines that say what was done. Raises one of `BAD_INPUT`.
    """
    data = job.config.data
    if data.prepare is None:
        raise ConfigError("data.prepare: missing; set the sources to read (python launchers/prepare_data.py --help)")
    job.check()
    preparation = Preparation(data.prepare, data.path)
    folder = preparation.folder.with_name(f"{preparation.folder.name}.slurm")
    script = preparation_script(job, profile, folder, tasks)
    one = profile.model_copy(
        update={
            "nodes": 1,
            "gpus_per_node": 0,
            "memory": profile.data.memory,
            "partition": profile.data.partition or profile.partition,
            "time": profile.data.time or profile.time,
        }
    )
    if not dry_run or slurm.has_slurm():
        slurm.check_possible(one, cpus_per_node=profile.data.cpus)
        slurm.let_sbatch_check(script)
    if dry_run:
        return [script, f"# not submitted; this would be {folder / 'prepare.sbatch'}"]
    if preparation.finished() is not None:
        return [f"{preparation.folder} is already prepared with these settings"]
    pending = preparation.pending(tasks)
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / "prepare.sbatch")
    write_text(Path(path), script)
    return _submit_parts(path, pending, tasks, folder)


def _submit_parts(path: str, pending: Sequence[int] | None, tasks: int, folder: Path) -> list[str]:
    lines, options = [], ["--job-name=plan"]
    if pending is None:
        plan = slurm.submit(path, "plan", options=options)
        lines.append(f"submitted job {plan}: lists the input and trains the tokenizer if needed")
        options = [f"--dependency=afterok:{plan}", _CHAIN]
    else:
        options = []
        lines.append(f"the plan exists; {tasks - len(pending)} of {tasks} tasks are finished")
    parts = list(range(tasks)) if pending is None else list(pending)
    if parts:
        array = f"0-{tasks - 1}" if len(parts) == tasks else ",".join(map(str, parts))
        job = slurm.submit(path, "task", options=[*options, f"--array={array}", "--job-name=tasks"])
        lines.append(f"submitted job {job}: tasks {array}")
        options = [f"--dependency=afterok:{job}", _CHAIN]
    merge = slurm.submit(path, "merge", options=[*options, "--job-name=merge"])
    lines.append(f"submitted job {merge}: merges the tasks into the folder, when all have succeeded")
    lines.append(f"output:   {folder}/prepare-*.out")
    lines.append(f"then:     python launchers/submit.py … --after {merge}")
    return lines
