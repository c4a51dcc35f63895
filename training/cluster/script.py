"""Makes job scripts: `#SBATCH` lines, settings as quoted shell assignments, then the fixed text of a `.sh` file.

Only the first two parts contain values, and these are quoted, so no value can be executed as a command.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.cluster.profile import ClusterProfile, DataJobs, one_line
from training.config import RunConfig
from training.errors import ConfigError
from training.logs import without_secret

PROJECT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_PLAIN = re.compile(r"[\w./+=,:@%*&|()\[\]-]+", re.ASCII)


@dataclass(frozen=True)
class RunJob:
    """A run that is submitted: its configuration and the folder in which it was submitted."""

    config: RunConfig
    config_file: Path
    overrides: tuple[str, ...]
    folder: Path  # base of the configuration's relative paths

    @property
    def run(self) -> Path:
        """The run's folder, absolute."""
        return (self.folder / self.config.run.folder).resolve()

    @property
    def script(self) -> Path:
        """The job script's file."""
        return self.run / "submit.sbatch"

    @property
    def last_step(self) -> int:
        """The step at which the run is finished or stops."""
        stop = self.config.training.stop_after_steps
        return min(self.config.total_steps, stop or self.config.total_steps)

    def check(self) -> None:
        """Raise `ConfigError` for a path that a script's line cannot contain, and for a password in an override."""
        for field, value in (("run.name", self.run), ("--config", self.config_file), ("working folder", self.folder)):
            try:
                one_line(str(value))
            except ValueError as error:
                raise ConfigError(f"{field}: {str(value)!r} {error}") from None
            if "\\" in str(value):
                raise ConfigError(
                    f"{field}: {str(value)!r} has a backslash, which Slurm does not allow in file names; rename it"
                )
        if secret := [word for word in self.overrides if without_secret(word) != word]:
            raise ConfigError(
                f"{secret[0].partition('=')[0]}: holds a password, which would be written into the job script; set it "
                "in the environment (MLFLOW_TRACKING_URI, MLFLOW_TRACKING_PASSWORD), which the job inherits"
            )


def training_script(job: RunJob, profile: ClusterProfile, evaluation: bool = False) -> str:
    """Return the text of a run's `submit.sbatch`; evaluation: its jobs submit evaluations of kept checkpoints."""
    config, run = job.config, job.run
    options = {"--signal": f"USR2@{profile.signal_seconds}", "--requeue": "", "--open-mode": "append"}
    check, pyxis = profile.preflight, _container_options(job, profile)
    checks = [f"--min-memory-gib={check.min_memory_gib}", f"--min-disk-gib={check.min_disk_gib}"]
    checks += [f"--max-clock-skew={check.max_clock_skew_seconds}", f"--all-reduce-mib={check.all_reduce_mib}"]
    checks += [f"--gpus={profile.gpus_per_node}", f"--timeout={check.timeout_seconds * 0.8:g}", f"--folder={run}"]
    checks += [f"--folder={folder}" for folder in check.folders]
    return _script(
        f"memtrain: run {config.run.name!r} on {profile.nodes} nodes x {profile.ranks_per_node} ranks. "
        "Written by launchers/submit.py.",
        _resources(profile, _job_name(config.run.name), run / "log" / "slurm-%j.out") | options,
        profile,
        [
            f"cd {shlex.quote(str(job.folder))}",
            _assign("run", str(run)),
            _assign("script", str(job.script)),
            _assign("project", str(PROJECT)),
            _assign("config", str(job.config_file)),
            _assign("overrides", list(job.overrides)),
            _assign("total_steps", str(job.last_step)),
            _assign("max_attempts", str(profile.max_attempts)),
            _assign("exclude", ",".join(profile.excluded_nodes)),
            _assign("python", profile.python((PROJECT, job.folder, run.parent))),
            _assign("container_options", pyxis),
            _assign(
                "srun_options",
                [
                    f"--nodes={profile.nodes}",
                    f"--ntasks={profile.ranks}",
                    f"--ntasks-per-node={profile.ranks_per_node}",
                    f"--cpus-per-task={profile.cpus_per_rank}",
                ],
            ),
            _assign("check_seconds", str(check.timeout_seconds if check.enabled else 0)),
            _assign("check_options", checks),
            _assign("evaluation", str(run / "evaluate.sbatch") if evaluation else ""),
            _assign("keep_every", str(config.checkpoint.keep_every_steps or 0)),
        ],
        (_HERE / "job.sh").read_text(encoding="utf-8"),
    )


def evaluation_script(job: RunJob, profile: ClusterProfile, options: Sequence[str]) -> str:
    """Return the text of a run's `evaluate.sbatch`: one rank evaluates the checkpoint given as the script's argument.

    options: arguments of launchers/evaluate.py.
    """
    one = profile.model_copy(
        update={"nodes": 1, "ranks_per_node": 1, "gpus_per_node": min(1, profile.gpus_per_node), "memory": None}
    )
    return _script(
        f"memtrain: evaluates the checkpoint that is its argument, of run {job.config.run.name!r}. "
        "Written by launchers/submit.py.",
        _resources(one, _job_name(f"eval-{job.config.run.name}"), job.run / "log" / "evaluate-%j.out"),
        profile,
        [
            f"cd {shlex.quote(str(job.folder))}",
            _assign("run", str(job.run)),
            _assign("python", one.python((PROJECT, job.folder, job.run.parent))),
            _assign("container_options", _container_options(job, profile)),
            _assign("command", [str(PROJECT / "launchers" / "evaluate.py"), *options]),
        ],
        "set -u\nunset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT PMI_RANK PMI_SIZE PMIX_RANK\n"
        "unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK\n"
        'srun --ntasks=1 "${container_options[@]}" "${python[@]}" "${command[@]}" \\\n'
        '  --checkpoint "$run/checkpoints/$1"\n',
    )


def preparation_script(job: RunJob, profile: ClusterProfile, data_folder: Path, tasks: int) -> str:
    """Return the text of `prepare.sbatch`, whose argument is plan, task or merge; data_folder: for its output."""
    data: DataJobs = profile.data
    one = profile.model_copy(
        update={
            "nodes": 1,
            "ranks_per_node": 1,
            "gpus_per_node": 0,
            "gpu_type": None,
            "cpus_per_rank": data.cpus,
            "memory": data.memory,
            "time": data.time or profile.time,
            "partition": data.partition or profile.partition,
        }
    )
    log = data_folder / "prepare-%x-%A_%a.out"
    return _script(
        f"memtrain: prepares the data of {job.config_file.name}. Argument: plan, task or merge. "
        "Written by launchers/submit.py.",
        _resources(one, "prepare", log) | {"--requeue": "", "--open-mode": "append"},
        profile,
        [
            f"cd {shlex.quote(str(job.folder))}",
            _assign("tasks", str(tasks)),
            _assign("python", one.python((PROJECT, job.folder, data_folder.parent))),
            _assign("container_options", _container_options(job, profile)),
            _assign(
                "command",
                [
                    str(PROJECT / "launchers" / "prepare_data.py"),
                    *("--config", str(job.config_file), *job.overrides, f"data.prepare.workers={data.cpus}"),
                ],
            ),
        ],
        (_HERE / "prepare.sh").read_text(encoding="utf-8"),
    )


def _container_options(job: RunJob, profile: ClusterProfile) -> list[str]:
    container = profile.container
    if container is None or container.runtime != "pyxis":
        return []
    own = dict.fromkeys(f"{path}:{path}" for path in (PROJECT, job.folder, job.run.parent))
    mounts = [*own, *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts)]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={job.folder}",
    ]


def _resources(profile: ClusterProfile, name: str, log: Path) -> dict[str, str]:
    """Return sbatch's options for a profile, without those that are not set."""
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    asked = {
        "--job-name": name,
        "--partition": profile.partition,
        "--account": profile.account,
        "--qos": profile.qos,
        "--reservation": profile.reservation,
        "--time": profile.time,
        "--nodes": str(profile.nodes),
        "--ntasks-per-node": str(profile.ranks_per_node),
        "--cpus-per-task": str(profile.cpus_per_rank),
        "--gpus-per-node": f"{kind}{profile.gpus_per_node}" if profile.gpus_per_node else None,
        "--mem": profile.memory,
        "--constraint": profile.constraint,
        "--exclude": ",".join(profile.exclude),
        "--output": str(log.parent).replace("%", "%%") + "/" + log.name,
    }
    return {option: value for option, value in asked.items() if value}


def _script(title: str, options: dict[str, str], profile: ClusterProfile, settings: list[str], body: str) -> str:
    login = " -l" if profile.modules else ""  # only a login shell has the command `module`
    lines = [f"#!/bin/bash{login}", f"# {title}"]
    lines += [f"#SBATCH {option}{'=' + _sbatch_word(value) if value else ''}" for option, value in options.items()]
    lines += [f"#SBATCH {option}" for option in profile.sbatch]
    lines += ["", *settings]
    lines += [f"module load {shlex.quote(module)}" for module in profile.modules]
    lines += [f"source {shlex.quote(profile.venv.rstrip('/') + '/bin/activate')}"] if profile.venv else []
    variables = {"OMP_NUM_THREADS": str(profile.cpus_per_rank), **profile.variables}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n\n" + body


def _assign(name: str, value: str | list[str]) -> str:
    words = shlex.quote(value) if isinstance(value, str) else f"({shlex.join(value)})"
    return f"{name}={words}"


def _sbatch_word(value: str) -> str:
    """Return a value in the form that sbatch reads from a script: in quotes where needed, without expansion."""
    return value if _PLAIN.fullmatch(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _job_name(name: str) -> str:
    """Return `name` as a job's name of at most 60 plain characters."""
    return re.sub(r"[^\w.+=-]+", "_", name, flags=re.ASCII)[:60].strip("_") or "memtrain"
