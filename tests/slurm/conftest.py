"""A Slurm of two nodes for the whole session, a small run, and the commands people type at it."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.commands import ROOT, Done, run_warm
from tests.e2e.mlflow_server import MlflowServer, mlflow_server
from tests.slurm.sandbox import NETWORK, Sandbox, until, why_not

SUBMIT = ROOT / "launchers" / "submit.py"
STEPS_A_PHASE, LENGTH = 60, 64
STEPS = 2 * STEPS_A_PHASE
TOKENS_A_STEP = 4 * LENGTH
# tensor parallel inside a node, pipeline across
TWO_BY_TWO = ("parallel.tensor=2", "parallel.pipeline=2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    if reason := why_not():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="memtrain-slurm-"))  # sockets have short names
    box = Sandbox(root)
    try:
        box.start()
        yield box
    finally:
        box.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def server(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A tracking server with passwords, where both nodes reach it."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db", f"{NETWORK}.1") as running:
        yield running


@dataclass(frozen=True)
class Site:
    """A user's working folder on the cluster."""

    folder: Path
    box: Sandbox

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def submit(self, name: str, *arguments: str) -> Done:
        """`launchers/submit.py`, from the working folder."""
        words = ("--config", "run.yaml", "--cluster", "cluster.yaml", f"run.name={name}", *arguments)
        return run_warm(SUBMIT, *words, cwd=self.folder, extra=self.box.environment)

    def submitted(self, name: str, *arguments: str) -> list[str]:
        """The ids of the jobs of a submission that must succeed."""
        done = self.submit(name, *arguments)
        assert done.code == 0, done.err
        return [line.split()[2].rstrip(":") for line in done.out.splitlines() if line.startswith("submitted job")]

    def step(self, name: str) -> int:
        """The last step in metrics.jsonl."""
        path = self.run(name) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((line["step"] for line in map(_json, lines) if line), default=0)

    def until_step(self, name: str, step: int, job: str) -> None:
        """The run is past `step`; fails early when its job ended."""

        def past() -> bool:
            assert self.box.job(job).get("JobState") not in ENDED, self.output(name)
            return self.step(name) >= step

        until(past, 240, f"step {step} of {name}")

    def restarts(self, job: str) -> int:
        """How often Slurm requeued the job."""
        return int(self.box.job(job).get("Restarts", 0))

    def until_restarts(self, job: str, count: int) -> None:
        """The job was requeued `count` times or more: a node that comes back can cost another start."""
        try:
            until(lambda: self.restarts(job) >= count, 120, f"restart {count} of job {job}")
        except TimeoutError as error:
            logs = sorted(self.folder.glob(f"runs/*/log/slurm-{job}*.out"))
            printed = "".join(path.read_text() for path in logs)[-4000:]
            raise TimeoutError(f"{error}: {self.box.job(job)}\n{printed}") from error

    def end(self, job: str, seconds: float = 240) -> str:
        """Wait for the job's end; how it ended, such as COMPLETED."""
        until(lambda: self.box.job(job).get("JobState") in ENDED, seconds, f"the end of job {job}")
        return self.box.job(job)["JobState"]

    def output(self, name: str) -> str:
        """What the jobs of a run printed."""
        return "".join(path.read_text() for path in sorted((self.run(name) / "log").glob("slurm-*.out")))

    def mlflow_runs(self, name: str) -> list[dict[str, Any]]:
        """MLflow's runs of that name: status, tags, and train/loss by step with how often it is there."""
        with sqlite3.connect(f"file:{self.folder / 'runs' / 'mlflow.db'}?mode=ro", uri=True) as base:
            found = []
            for run, status in base.execute("SELECT run_uuid, status FROM runs WHERE name = ?", (name,)).fetchall():
                tags = dict(base.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)).fetchall())
                losses = "SELECT step, COUNT(*) FROM metrics WHERE run_uuid = ? AND key = 'train/loss' GROUP BY step"
                found.append({"status": status, "tags": tags, "steps": dict(base.execute(losses, (run,)).fetchall())})
            return found


def _json(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # being written
        return None


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The working folder, and an idle cluster."""
    shared_site.box.cancel_all()
    shared_site.box.until_idle()
    return shared_site


@pytest.fixture(scope="session")
def shared_site(sandbox: Sandbox, prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")

    def phase(name: str, memory: bool) -> dict[str, Any]:
        tokens = STEPS_A_PHASE * TOKENS_A_STEP
        lr = {"peak": 4e-3, "warmup_tokens": 4 * TOKENS_A_STEP}
        return {"name": name, "memory": memory, "tokens": tokens, "tokens_per_step": TOKENS_A_STEP, "lr": lr}

    quickstart = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    small = {"vocab_size": 512, "hidden_size": 32, "num_layers": 2, "ffn_size": 64, "segment_length": 16}
    run = quickstart | {
        "data": {"path": str(prepared_data), "sequence_length": LENGTH},
        "model": quickstart["model"] | small | {"memory": {"kind": "lm2", "flow": "time", "slots": 4, "heads": 2}},
        "phases": [phase("warmup", False), phase("memory", True)],
        "training": {"micro_batch_size": 2, "eval_samples": 4},
        "checkpoint": {"every_steps": 10, "keep_last": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    cluster = yaml.safe_load((ROOT / "configs" / "cluster" / "local.yaml").read_text())
    check = {"min_disk_gib": 0.01, "min_memory_gib": 0.1, "timeout_seconds": 60, "folders": [str(scratch(sandbox))]}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster | {"preflight": check}))
    return Site(folder, sandbox)


def scratch(box: Sandbox) -> Path:
    """A folder that is another small disk on every node."""
    return box.root / "scratch" / "local"


@pytest.fixture(scope="session")
def uninterrupted(shared_site: Site) -> Path:
    """A run on 2 nodes x 2 ranks from its first step to its last."""
    (job,) = shared_site.submitted("plain", *TWO_BY_TWO)
    assert shared_site.end(job) == "COMPLETED", shared_site.output("plain")
    return shared_site.run("plain")
