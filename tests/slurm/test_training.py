"""Training on a real Slurm: it trains, it survives, it is bounded, and nothing a user writes is executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.spawn import free_port
from tests.e2e.commands import PRETRAIN, ROOT, losses, reproducible, run, run_warm
from tests.e2e.mlflow_server import CREDENTIALS, PASSWORD, MlflowServer
from tests.slurm.conftest import ENDED, STEPS, STEPS_A_PHASE, TWO_BY_TWO, Site, scratch
from tests.slurm.sandbox import until

EVALUATE = ROOT / "launchers" / "evaluate.py"
ONE_RANK = ("cluster.nodes=1", "cluster.ranks_per_node=1")
NO_CHECK = ("cluster.preflight.enabled=false",)
SHORT = ("training.stop_after_steps=3", "tracking.enabled=false")


def test_two_nodes_train_as_one_process_does(site: Site, uninterrupted: Path) -> None:
    """The bits of torchrun's 4 ranks on one machine, and one rank's losses as long as rounding has not grown."""
    options = ("--config", "run.yaml", "tracking.enabled=false", "training.stop_after_steps=20")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4", f"--master-port={free_port()}"]
    done = run([*torchrun, str(PRETRAIN), *options, "run.name=local", *TWO_BY_TWO], site.folder, timeout=300)
    assert done.code == 1, done.err  # torchrun's way of saying 75
    one = run_warm(PRETRAIN, *options, "run.name=one", cwd=site.folder)
    assert one.code == 75, one.err
    cluster = losses(uninterrupted)
    assert cluster.keys() == set(range(1, STEPS + 1))
    first = {step: cluster[step] for step in range(1, 21)}
    assert losses(site.run("local")) == first
    assert losses(site.run("one")) == pytest.approx(first, abs=1e-4)
    logs = {rank: (uninterrupted / "log" / f"rank-{rank}.log").exists() for rank in range(4)}
    assert all(logs.values()), logs
    output = site.output("plain")
    assert "n1: ok 2 nodes" in output and "n2: ok 2 nodes" in output
    assert "tensor 2 x pipeline 2" in output


def test_a_requeue_after_the_end_ends_at_once(site: Site, uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").stat().st_mtime_ns
    job = (uninterrupted / "slurm" / "jobs").read_text().split()[0]
    site.box.ask("scontrol", "requeue", job)
    site.until_restarts(job, 1)
    assert site.end(job) == "COMPLETED"
    assert f"step {STEPS} was reached before: nothing to do" in site.output("plain")
    assert (uninterrupted / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.timeout(900)
def test_every_interruption_is_survived_in_one_run(
    site: Site, uninterrupted: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracking server is away, too, from before a node dies until it is back."""
    name, box = "interrupted", site.box
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    wish = ("cluster.partition=low", "cluster.preflight.enabled=false", f"tracking.uri={server.uri}")
    (job,) = site.submitted(name, *TWO_BY_TWO, *wish)

    site.until_step(name, 12, job)
    box.ask("scancel", "--signal=USR2", job)
    site.until_restarts(job, 1)

    site.until_step(name, 30, job)
    words = ["--partition=high", "--nodes=2", "--ntasks-per-node=4", "--output=/dev/null", "--wrap=true"]
    high = subprocess.run(
        ["sbatch", "--parsable", *words], env=os.environ | box.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    site.until_restarts(job, 2)
    assert site.end(high, 60) == "COMPLETED"

    site.until_step(name, 45, job)
    server.kill()
    site.until_step(name, 55, job)
    box.kill_node("n2")  # the ranks on n1 lose theirs
    site.until_restarts(job, 3)
    server.start()
    server.wait()
    box.start_node("n2")

    site.until_step(name, 85, job)
    before = site.restarts(job)
    box.ask("scontrol", "requeue", job)
    site.until_restarts(job, before + 1)

    assert site.end(job) == "COMPLETED", site.output(name)
    assert reproducible(site.run(name)) == reproducible(uninterrupted)
    (tracked,) = server.runs(name)
    assert tracked["info"]["status"] == "FINISHED"
    tags = {tag["key"]: tag["value"] for tag in tracked["data"]["tags"]}
    assert 4 <= int(tags["restarts"]) <= site.restarts(job)
    curve = server.history(tracked["info"]["run_id"], "train/loss")
    assert {int(point["step"]): point["value"] for point in curve} == losses(uninterrupted)
    assert len(curve) == STEPS
    output = site.output(name)
    assert PASSWORD not in output + (site.run(name) / "submit.sbatch").read_text()
    assert output.count("saved; run the same command again") >= 2, output  # USR2 and preemption lost no step
    assert "by SIGUSR2, saved" in output


def test_starts_without_progress_are_bounded(site: Site) -> None:
    """Every start fails before its first checkpoint."""
    name = "hopeless"
    # a database in a folder that is a file
    (site.folder / "not-a-folder").write_text("")
    broken = "tracking.uri=sqlite:///not-a-folder/x.db"
    (job,) = site.submitted(name, *ONE_RANK, *NO_CHECK, broken)
    assert site.end(job) == "FAILED"
    assert site.box.job(job)["Restarts"] == "0"  # bad input: not tried again
    assert site.box.job(job)["ExitCode"] == "2:0"

    name = "killed"
    (job,) = site.submitted(name, *ONE_RANK, *NO_CHECK, "cluster.max_attempts=2", "checkpoint.every_steps=100000")
    for restart in (1, 2):
        site.until_step(name, 1, job)
        (site.run(name) / "metrics.jsonl").unlink()
        pids = subprocess.run(["ip", "netns", "pids", "mt-n1"], capture_output=True, text=True).stdout.split()
        for pid in pids:
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"pretrain.py" in command.read_bytes() and b"srun" not in command.read_bytes():
                os.kill(int(pid), 9)
        site.until_restarts(job, restart)
    assert site.end(job) == "FAILED"
    assert "given up: 2 starts without a new checkpoint" in site.output(name)


def test_a_sick_node_is_named_and_left_out(site: Site) -> None:
    """n1's local disk is full; the job was given n1, and runs on n2."""
    full = scratch(site.box) / "full"
    subprocess.run(site.box.inside("n1", "dd", "if=/dev/zero", f"of={full}", "bs=1M"), capture_output=True)
    try:
        (job,) = site.submitted("sick", *ONE_RANK, *SHORT)
        assert site.end(job) == "COMPLETED", site.output("sick")
    finally:
        subprocess.run(site.box.inside("n1", "rm", str(full)), check=True)
    assert "node n1 is bad: " in site.output("sick") and f"{full.parent} " in site.output("sick")
    assert site.box.job(job)["ExcNodeList"] == "n1"
    assert site.box.job(job)["NodeList"] == "n2"
    dry = site.submit("sick", *ONE_RANK, "--dry-run")
    assert "#SBATCH --exclude=n1\n" in dry.out  # the next submission knows it too


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("cluster.nodes=3", "parallel.pipeline=1"), "cluster.nodes: 3, but 2 of the 2 nodes of partition main fit"),
        (("cluster.gpus_per_node=8",), "n1: 0 GPUs, 8 asked"),
        (("cluster.cpus_per_rank=16",), "n1: 4 cores, 32 asked"),
        (("cluster.memory=900G",), "n1: 8000M memory, 900G asked"),
        (("cluster.time='9:00:00'",), "cluster.time: 9:00:00 is more than the 08:00:00 of partition main"),
        (
            ("cluster.partition=gpu",),
            "cluster.partition: 'gpu' does not exist here; choose one of high, low, main",
        ),
        (("cluster.nodes=1", *TWO_BY_TWO), "parallel: 2 ranks were started, but tensor 2 x pipeline 2"),
    ],
)
def test_what_can_never_run_is_refused_before_submission(site: Site, asked: tuple[str, ...], said: str) -> None:
    done = site.submit("impossible", "training.micro_batch_size=1", *asked)
    assert done.code == 2, done.out
    assert said in done.err
    assert not site.run("impossible").exists()
    assert not site.box.ask("squeue", "-h")


def test_nothing_in_a_name_is_executed(site: Site) -> None:
    name = 'it\'s "a" $(touch pwned) `touch pwned` ; touch pwned &#x%j'
    (job,) = site.submitted(name, *ONE_RANK, *SHORT, "tracking.experiment=$(touch pwned)'\"")
    assert site.end(job) == "COMPLETED", site.output(name)
    assert (site.run(name) / "checkpoints" / "latest").read_text().strip() == "step-00000003"
    assert (site.run(name) / "log" / f"slurm-{job}.out").exists()
    assert not list(site.folder.rglob("pwned"))
    bad = site.submit('"two\\nlines"', *ONE_RANK)
    assert bad.code == 2 and "line break" in bad.err


def test_phases_as_dependent_jobs(site: Site) -> None:
    """The first is interrupted and queued again in between: the second waits until it has really ended."""
    name = "chain"
    first, second = site.submitted(name, *ONE_RANK, *NO_CHECK, "--phases-as-jobs")
    site.until_step(name, 5, first)
    assert site.box.job(second)["JobState"] == "PENDING"
    site.box.ask("scancel", "--signal=USR2", first)
    site.until_restarts(first, 1)
    assert site.box.job(second)["JobState"] == "PENDING"
    assert site.end(first) == "COMPLETED"
    assert site.step(name) >= STEPS_A_PHASE
    assert site.end(second) == "COMPLETED", site.output(name)
    assert losses(site.run(name)).keys() == set(range(1, STEPS + 1))
    (tracked,) = site.mlflow_runs(name)
    assert (tracked["status"], tracked["tags"]["restarts"]) == ("FINISHED", "2")


def test_a_phase_that_fails_takes_its_successors_along(site: Site) -> None:
    (site.folder / "not-a-folder").write_text("")
    broken = "tracking.uri=sqlite:///not-a-folder/x.db"
    first, second = site.submitted("broken-chain", *ONE_RANK, *NO_CHECK, broken, "--phases-as-jobs")
    assert site.end(first) == "FAILED"
    until(lambda: site.box.job(second).get("JobState") in ENDED, 30, "the end of the second job")
    assert site.box.job(second)["JobState"] == "CANCELLED"


@pytest.mark.skipif(not EVALUATE.exists(), reason="there is no launchers/evaluate.py")
def test_kept_checkpoints_are_evaluated_by_jobs_of_their_own(site: Site) -> None:
    name = "evaluated"
    wish = ("--evaluate", "--tasks perplexity --lengths 64 --samples 2", "checkpoint.keep_every_steps=40")
    (job,) = site.submitted(name, *ONE_RANK, *NO_CHECK, "tracking.enabled=false", *wish)
    assert site.end(job) == "COMPLETED", site.output(name)
    until(lambda: not site.box.ask("squeue", "-h"), 240, "the evaluations")
    for step in (40, 80, STEPS):
        (result,) = (site.run(name) / "evaluation").glob(f"*{step}*.json")
        assert "perplexity" in result.read_text()
    assert site.output(name).count("is evaluated by job") == 3


def test_the_time_limit_is_survived_and_a_cancelled_job_stays_cancelled(site: Site) -> None:
    """The last test of all: Slurm takes a minute or two until it believes that a cancelled job is gone."""
    name, box = "long", site.box
    (job,) = site.submitted(name, *ONE_RANK, *NO_CHECK, "phases.0.tokens=10000000", "tracking.enabled=false")
    site.until_step(name, 3, job)
    assert site.submit(name, *ONE_RANK).code == 2  # a second job for the same run

    box.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # so the signal is due: 120 s before
    site.until_restarts(job, 1)
    box.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert "by SIGUSR2, saved" in site.output(name)

    saved = site.step(name)
    site.until_step(name, saved + 3, job)
    box.ask("scancel", job)
    assert site.end(job) == "CANCELLED"
    until(lambda: "ends; Slurm decides whether" in site.output(name), 60, "the script's last word")
    assert site.output(name).count("saved; run the same command again") == 2
    assert box.job(job)["Restarts"] == "1"
