"""What is said of a run, from its folder: every state, the numbers, the ranks, the last errors, Slurm's answer."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_prep.files import write_text
from tests.e2e.commands import ROOT
from training.checkpoint.manifest import POINTER, FileEntry, write_manifest
from training.cluster.job_state import Job, job_state
from training.config import dump_yaml, parse_config
from training.errors import ConfigError
from training.faults.watchdog import Beat
from training.monitoring.status import Status, status_of
from training.monitoring.status_screen import screen
from training.monitoring.units import duration
from training.tracking import facts

STEPS, TOKENS = 20, 256


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 8 of 20 steps, saved after 6."""
    folder = tmp_path / "runs" / "tiny"
    (folder / "log").mkdir(parents=True)
    lr = {"peak": 1e-3, "warmup_tokens": TOKENS}
    phases = [
        {"name": name, "memory": name == "memory", "tokens": 10 * TOKENS, "tokens_per_step": TOKENS, "lr": lr}
        for name in ("warmup", "memory")
    ]
    model = {"vocab_size": 512, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 32}
    config = parse_config(
        {
            "run": {"name": "tiny", "output_dir": str(tmp_path / "runs")},
            "data": {"path": "data", "sequence_length": 32},
            "model": model | {"segment_length": 8, "memory": {"kind": "lm2", "slots": 4, "heads": 2}},
            "phases": phases,
            "training": {"micro_batch_size": 2},
        }
    )
    write_text(folder / "config.yaml", dump_yaml(config))
    lines: list[dict[str, Any]] = [
        {"step": step, "tokens": step * TOKENS, "phase": "warmup", "loss": 6 - step / 10, "tokens_per_second": 512.0}
        | {"trained_seconds": step * TOKENS / 512}
        for step in range(1, 9)
    ]
    lines.insert(6, {"step": 6, "tokens": 6 * TOKENS, "phase": "warmup", "valid_loss": 5.5})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    save(folder, 6)
    began = time.strftime(facts.STAMP, time.gmtime(time.time() - 100))
    facts.add_start(folder, facts.this_start(0, 2) | {"time": began})
    return folder


def save(folder: Path, step: int) -> None:
    """A checkpoint as far as its files' checksums can tell."""
    checkpoint = folder / "checkpoints" / f"step-{step:08}"
    checkpoint.mkdir(parents=True)
    names = ("state.json", ".metadata")
    for name in names:
        (checkpoint / name).write_text("{}")
    write_manifest(checkpoint, {name: FileEntry.of(checkpoint / name) for name in names})
    write_text(folder / "checkpoints" / POINTER, checkpoint.name + "\n")


def beat(folder: Path, rank: int, pid: int, age: float = 0.0, host: str = "") -> None:
    at = time.time() - age
    told = Beat(rank, 9, "warmup", "step", at, at, host=host or socket.gethostname(), pid=pid)
    (folder / "log" / f"heartbeat-rank-{rank}.json").write_text(json.dumps(vars(told)))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def shown(status: Status) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(screen(status))
    return console.export_text()


def test_a_training_run(run: Path) -> None:
    for rank in (0, 1):
        beat(run, rank, os.getpid())
    status = status_of(run)
    assert (status.state, status.about) == ("training", "step 9")
    assert (status.phase, status.step, status.steps) == ("warmup", 8, STEPS)
    assert (status.tokens, status.total_tokens) == (8 * TOKENS, STEPS * TOKENS)
    assert (status.loss, status.valid_loss) == (5.2, 5.5)
    assert status.eta_seconds == pytest.approx(12 * TOKENS / 512)
    assert status.checkpoint_step == 6
    assert 0 <= (status.checkpoint_age or -1) < 60
    assert status.restarts == 0
    assert status.goodput == pytest.approx(8 * TOKENS / 512 / 100, rel=0.25)  # 4 of about 100 seconds
    text = shown(status)
    for part in (
        "8 of 20",
        "5.2000",
        "512 tokens/s",
        "6 s left",
        "since the first start were steps that count",
        "step 6,",
        "2 of 2 alive",
    ):
        assert part in text, part


def test_ranks_that_give_no_sign_are_named(run: Path) -> None:
    beat(run, 0, os.getpid())
    beat(run, 1, 1, age=120, host="node7")
    status = status_of(run)
    assert (status.state, status.about) == ("hanging", "no sign of life from rank 1 of 2")
    assert "rank 1 on node7 silent for 2 min" in shown(status)


def test_a_killed_run_is_dead_at_once_on_its_own_machine(run: Path) -> None:
    for rank in (0, 1):
        beat(run, rank, dead_pid())
    status = status_of(run)
    assert status.state == "dead"
    assert "after step 8; the same command continues after step 6" in status.about
    assert "none of 2 alive" in shown(status)


@pytest.mark.parametrize(
    ("ended", "state"), [(("KILLED", "stopped after step 8, saved; run the same command again"), "stopped"),
                         (("FAILED", "failed after step 8: OSError: disk"), "failed")],
)  # fmt: skip
def test_how_it_ended_is_told_until_it_starts_again(run: Path, ended: tuple[str, str], state: str) -> None:
    facts.write_end(run, facts.End(*ended, exit_code=75))  # type: ignore[arg-type]
    status = status_of(run)
    assert status.state == state
    assert status.about.startswith(ended[1])
    facts.add_start(run, facts.this_start(6, 2))
    assert status_of(run).state == "dead"
    assert status_of(run).restarts == 1


def test_a_finished_run(run: Path) -> None:
    save(run, STEPS)
    status = status_of(run)
    assert (status.state, status.step, status.tokens) == ("finished", STEPS, STEPS * TOKENS)
    assert "100.0%" in shown(status)


def test_checkpoints_without_a_whole_one_are_told(run: Path) -> None:
    (run / "checkpoints" / "step-00000006" / ".metadata").unlink()
    status = status_of(run)
    assert status.checkpoint_step is None
    assert "no whole checkpoint is left" in status.errors[-1]


def test_the_last_errors_of_all_ranks(run: Path) -> None:
    for rank in range(6):
        (run / "log" / f"rank-{rank}.log").write_text(
            "2026-11-20 10:00:00,123 INFO    memtrain  all is well\n"
            "2026-11-20 10:00:01,123 WARNING py.warnings  deprecated\n"
            "2026-11-20 10:00:02,123 ERROR   memtrain  lost a peer\n"
        )
    (run / "log" / "rank-3.log").open("a").write("2026-11-20 10:00:01,999 WARNING memtrain  the disk is slow\n")
    assert list(status_of(run).errors) == [
        "2026-11-20 10:00:01 rank 3: WARNING the disk is slow",
        "2026-11-20 10:00:02 6 ranks (0, 1, 2, 3, …): ERROR lost a peer",
    ]


def test_the_command_prints_a_screen_or_json_and_refuses_another_folder(run: Path, tmp_path: Path) -> None:
    def status(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launchers" / "status.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    found = json.loads(status(str(run), "--json").stdout)
    assert (found["state"], found["step"], found["restarts"], found["job"]) == ("dead", 8, 0, None)
    assert "8 of 20" in status(str(run)).stdout
    refused = status(str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not a run's folder" in refused.stderr


def test_it_loads_no_torch() -> None:
    modules = "training.monitoring.status, training.monitoring.status_screen"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    code = code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "False False"


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        status_of(tmp_path)


class TestJob:
    """The order of the commands and what is read from them; tests/slurm asks the real ones."""

    @pytest.fixture(autouse=True)
    def commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        return folder

    def say(self, commands: Path, name: str, text: str) -> None:
        (commands / name).write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
        (commands / name).chmod(0o755)

    def test_without_slurm_there_is_no_job(self) -> None:
        assert job_state("12") is None

    def test_the_first_that_knows_it_is_believed(self, commands: Path) -> None:
        self.say(commands, "sacct", "TIMEOUT|0:0|n1\nCANCELLED by 0|0:15|n[1-2]")
        assert job_state("12") == Job("12", "CANCELLED", "exit code 0:15", "n[1-2]", "", "sacct")
        self.say(
            commands, "scontrol", "JobId=12 JobName=x y JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0 NodeList=n1"
        )
        assert job_state("12") == Job("12", "FAILED", "NonZeroExitCode", "n1", "", "scontrol")
        self.say(commands, "squeue", "PENDING|Resources||1:00:00")
        found = job_state("12_3")
        assert found == Job("12_3", "PENDING", "Resources", "", "1:00:00", "squeue")
        assert found.waits

    def test_a_job_nobody_knows(self, commands: Path) -> None:
        self.say(commands, "squeue", "")
        assert (found := job_state("12")) is not None
        assert found.state == "UNKNOWN"

    def test_a_waiting_job_is_the_run_s_state(self, commands: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        facts.add_start(run, facts.this_start(6, 2))
        self.say(commands, "squeue", "PENDING|BeginTime||1:00:00")
        status = status_of(run)
        assert (status.state, status.about) == ("waiting", "Slurm job 77 PENDING: BeginTime")
        assert "squeue" in shown(status)

    def test_a_submitted_run_that_has_not_begun(self, commands: Path, tmp_path: Path) -> None:
        folder = tmp_path / "submitted"
        (folder / "slurm").mkdir(parents=True)
        (folder / "slurm" / "jobs").write_text("3\n4\n")
        (folder / "slurm" / "excluded-nodes").write_text("n7\n")
        self.say(commands, "squeue", "PENDING|Resources||1:00:00")
        status = status_of(folder)
        assert (status.state, status.about) == ("waiting", "Slurm job 4 PENDING: Resources")
        assert "n7, not used again" in shown(status)

    def test_what_is_no_number_is_not_asked_for(self) -> None:
        with pytest.raises(ValueError, match="not a Slurm job's number"):
            job_state("12; reboot")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "1 min"), (11_100, "3 h 05 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
