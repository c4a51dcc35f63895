"""A run handed to Slurm: everything is refused that can be, the scripts are written, the jobs submitted."""

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

STATE = "slurm"  # folder of a run with what its jobs tell each other
_CHAIN = "--kill-on-invalid-dep=yes"  # or a job whose condition cannot come true any more waits for ever


@dataclass(frozen=True)
class Wish:
    """How a run is to be submitted."""

    phases_as_jobs: bool = False
    after: tuple[str, ...] = ()  # jobs that must have ended well
    evaluate: tuple[str, ...] = ()  # options of launchers/evaluate.py, for every kept checkpoint
    dry_run: bool = False


def submit_run(job: RunJob, profile: ClusterProfile, wish: Wish) -> list[str]:
    """Submit a run; lines that say what was done and how to follow it.  Raises `BAD_INPUT` before writing."""
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
    (state / "attempts").unlink(missing_ok=True)  # a person has looked
    write_text(job.script, script)
    if wish.evaluate:
        write_text(job.run / "evaluate.sbatch", evaluation_script(job, profile, wish.evaluate))
    jobs = _submit_chain(job, wish)
    with (state / "jobs").open("a", encoding="utf-8") as file:
        file.writelines(f"{number}\n" for number, _ in jobs)
    return lines + _told(job, profile, jobs)


def _check_run(job: RunJob, profile: ClusterProfile, wish: Wish) -> None:
    """What the ranks themselves would refuse, refused here."""
    from training.distributed.topology import check_world
    from training.preflight import check

    alone = RankInfo(0, profile.ranks, 0)
    if wish.after:  # they may make the data
        check_world(job.config, alone)
    else:
        check(job.config, alone)
    if wish.evaluate and not (PROJECT / "launchers" / "evaluate.py").exists():
        raise ConfigError("--evaluate: there is no launchers/evaluate.py; leave it out")


def _ask_cluster(profile: ClusterProfile, script: str, dry_run: bool) -> list[str]:
    if dry_run and not slurm.has_slurm():
        return ["not compared with a cluster: this machine has no Slurm"]
    lines = slurm.check_possible(profile)
    slurm.let_sbatch_check(script)
    return lines


def _found_bad(job: RunJob) -> list[str]:
    """Nodes that earlier jobs of the run found bad, and those that a person wrote there, in lists too."""
    path = job.run / STATE / "excluded-nodes"
    try:
        return expand(path.read_text(encoding="utf-8").split()) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"{path}: a line {error}; correct or delete that file") from None


def _refuse_second(job: RunJob) -> None:
    """Two jobs that train one run would overwrite each other."""
    path = job.run / STATE / "jobs"
    known = path.read_text(encoding="utf-8").split() if path.exists() else []
    if known and (busy := slurm.active(known)):
        shown = ", ".join(f"{number} ({state})" for number, state in busy.items())
        raise ConfigError(
            f"run.name: {job.config.run.name!r} has job {shown} already; wait for it, end it with scancel "
            f"{' '.join(busy)}, or choose another run.name"
        )


def _submit_chain(job: RunJob, wish: Wish) -> list[tuple[str, str]]:
    """(job id, what it does) of one job, or of one for each phase that waits for the one before."""
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


def _told(job: RunJob, profile: ClusterProfile, jobs: Sequence[tuple[str, str]]) -> list[str]:
    where = f"{profile.nodes} nodes x {profile.ranks_per_node} ranks"
    lines = [f"submitted job {number}: {name or job.config.run.name}, {where}" for number, name in jobs]
    first, run = jobs[0][0], shlex.quote(str(job.run))
    return [
        *lines,
        f"script:   {job.script}",
        f"queue:    squeue -j {','.join(number for number, _ in jobs)}",
        f"output:   tail -F {run}/log/slurm-{first}.out",
        f"state:    python launchers/status.py {run}",
        f"save now: scancel --signal=USR2 {first}     (it saves, is queued again and goes on)",
        f"end:      scancel {' '.join(number for number, _ in jobs)}",
    ]


def submit_preparation(job: RunJob, profile: ClusterProfile, tasks: int, dry_run: bool) -> list[str]:
    """Submit the preparation of the run's data: a plan, an array of `tasks`, and a merge when all have ended well.

    Parts that are finished are not submitted again.
    """
    data = job.config.data
    if data.prepare is None:
        raise ConfigError("data.prepare: missing; say in it what to read (python launchers/prepare_data.py --help)")
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
        lines.append(f"submitted job {plan}: lists the input and makes the tokenizer")
        options = [f"--dependency=afterok:{plan}", _CHAIN]
    else:
        options = []
        lines.append(f"planned before; {tasks - len(pending)} of {tasks} parts are finished")
    parts = list(range(tasks)) if pending is None else list(pending)
    if parts:
        array = f"0-{tasks - 1}" if len(parts) == tasks else ",".join(map(str, parts))
        job = slurm.submit(path, "task", options=[*options, f"--array={array}", "--job-name=tasks"])
        lines.append(f"submitted job {job}: parts {array} of the tasks")
        options = [f"--dependency=afterok:{job}", _CHAIN]
    merge = slurm.submit(path, "merge", options=[*options, "--job-name=merge"])
    lines.append(f"submitted job {merge}: puts the folder together, once all parts have ended well")
    lines.append(f"output:   {folder}/prepare-*.out")
    lines.append(f"then:     python launchers/submit.py … --after {merge}")
    return lines
