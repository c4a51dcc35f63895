"""A run from beginning to end, on other topologies, stopped, killed and continued."""

import contextlib
import json
import random
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.attempts import Site, through
from tests.e2e.commands import (
    PRETRAIN,
    deepspeed,
    losses,
    metrics,
    reproducible,
    run,
    run_warm,
    started,
    steps_of,
    tree,
    valid_losses,
    wait_until,
)
from tests.e2e.place import EVERY, PHASE_STEPS, STEPS, TOKENS_PER_STEP, Place, needs_deepspeed
from tests.pictures import coloured
from training.monitoring import plots

# -- a run from beginning to end --------------------------------------------------------------------------


def test_run_folder_has_the_promised_layout(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    told = {"environment.txt", "starts.jsonl", "ended.json", "lock", "products.json"}
    assert names == {"config.yaml", "metrics.jsonl", "loss.png", "log", "checkpoints"} | told
    assert [path.name for path in (finished / "log").iterdir()] == ["rank-0.log"]
    resolved = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["run"]["name"] == "finished"
    assert resolved["training"]["zero_stage"] == 1  # a default is written down too
    curves = {
        colour: coloured(finished / "loss.png", colour) for colour in (plots.TRAIN, plots.VALID, *plots.SPANS[:2])
    }
    assert all(curve > 200 for curve in curves.values()), curves
    saved = finished / "checkpoints"
    assert {path.name for path in saved.iterdir()} == {"latest", "step-00000010", "step-00000012"}
    assert (saved / "latest").read_text(encoding="utf-8").strip() == "step-00000012"
    state = json.loads((saved / "step-00000012" / "state.json").read_text(encoding="utf-8"))
    assert (state["step"], state["tokens"], state["samples"]) == (STEPS, STEPS * TOKENS_PER_STEP, STEPS * 4)


def test_log_tells_of_every_checkpoint(finished: Path) -> None:
    log = (finished / "log" / "rank-0.log").read_text(encoding="utf-8")
    saved = [line.rpartition("step-")[2] for line in log.splitlines() if "saved" in line]
    assert [int(number) for number in saved] == [5, 6, 10, 12]


def test_metrics_have_every_step_once_with_its_keys(finished: Path) -> None:
    lines = steps_of(finished)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    promised = {"step", "tokens", "phase", "loss", "grad_norm", "lr", "tokens_per_second"}
    beside = {"mfu", "gates", "data_wait", "trained_seconds", "goodput"}
    assert all(line.keys() == promised | beside for line in lines)
    assert [line["tokens"] for line in lines] == [step * TOKENS_PER_STEP for step in range(1, STEPS + 1)]
    assert [line["phase"] for line in lines] == ["warmup"] * PHASE_STEPS + ["memory"] * PHASE_STEPS
    assert all(line["grad_norm"] > 0 and line["tokens_per_second"] > 0 for line in lines)
    steps = [TOKENS_PER_STEP / line["tokens_per_second"] for line in lines]
    assert lines[-1]["trained_seconds"] == pytest.approx(sum(steps), rel=1e-6)
    assert all(0 < line["goodput"] < 1 for line in lines)
    rates = [2e-3, 4e-3, 4e-3, 4e-3, 4e-3, 4e-3, 2e-3, 4e-3, 4e-3, 2.8e-3, 1.6e-3, 4e-4]
    assert [line["lr"] for line in lines] == pytest.approx(rates, rel=1e-9)
    assert all(not line["gates"] for line in lines[:PHASE_STEPS])
    assert all(line["gates"].keys() == {"in", "forget", "out"} for line in lines[PHASE_STEPS:])


def test_training_learns_and_the_switch_is_smooth(finished: Path) -> None:
    found = losses(finished)
    assert found[1] == pytest.approx(6.738, abs=0.1)  # ln 512 + 1/2: it knows nothing yet, and logits vary by 1
    assert found[STEPS] < found[1] - 0.3
    assert abs(found[PHASE_STEPS + 1] - found[PHASE_STEPS]) < 0.4


def test_metrics_have_the_evaluations(finished: Path) -> None:
    lines = [line for line in metrics(finished) if "loss" not in line]
    assert [line["step"] for line in lines] == [4, PHASE_STEPS, 8, STEPS]
    plain_keys = {"step", "tokens", "phase", "valid_loss"}
    assert [line.keys() - plain_keys for line in lines] == [set(), set(), set(), {"ablated_valid_loss"}]
    assert all(plain_keys <= line.keys() for line in lines)
    assert lines[0]["valid_loss"] > lines[-1]["valid_loss"]
    assert abs(lines[-1]["ablated_valid_loss"] - lines[-1]["valid_loss"]) > 5e-3


def test_running_a_finished_run_again_changes_nothing(place: Place, finished: Path) -> None:
    before = tree(place.folder)
    again = run_warm(PRETRAIN, *place.arguments("finished"), cwd=place.folder)
    assert again.code == 0
    assert again.err == ""
    assert f"{Path('runs') / 'finished'} is finished: {STEPS} steps" in again.out
    assert "run.name=" in again.out  # how to start anew
    assert "warmup" not in again.out  # nothing was trained
    assert tree(place.folder) == before


# -- other topologies -------------------------------------------------------------------------------------


def assert_same_training(other: Path, reference: Path, tolerance: float = 1e-4) -> None:
    assert losses(other) == pytest.approx(losses(reference), abs=tolerance)
    assert valid_losses(other) == pytest.approx(valid_losses(reference), abs=tolerance)
    norms = [[line["grad_norm"] for line in steps_of(folder)] for folder in (other, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


class TestManyRanks:
    """The same losses on every topology."""

    pytestmark = needs_deepspeed

    def test_data_parallel(self, two_ranks: Path, finished: Path) -> None:
        assert_same_training(two_ranks, finished)
        assert {path.name for path in (two_ranks / "log").iterdir()} == {"rank-0.log", "rank-1.log"}

    @pytest.mark.slow
    def test_bad_input_is_said_once_and_the_launcher_passes_its_code_on(self, place: Place) -> None:
        before = tree(place.folder)
        done = run(deepspeed(2, *place.arguments("refused", "data.path=nowhere")), place.folder)
        assert done.code == 2
        assert (done.out + done.err).count("nowhere/manifest.json") == 1
        assert "Traceback" not in done.out + done.err
        assert tree(place.folder) == before

    @pytest.mark.parametrize(
        ("ranks", "overrides"),
        [
            (2, ["parallel.tensor=2"]),
            pytest.param(2, ["parallel.pipeline=2"], marks=pytest.mark.slow),
            pytest.param(4, ["parallel.tensor=2", "parallel.pipeline=2"], marks=pytest.mark.slow),
            pytest.param(4, ["parallel.tensor=2", "training.zero_stage=2"], marks=pytest.mark.slow),
        ],
        ids=lambda value: str(value) if isinstance(value, int) else "-".join(value).replace(".", "-"),
    )
    def test_model_parallel(self, place: Place, finished: Path, ranks: int, overrides: list[str]) -> None:
        name = "-".join([str(ranks), *overrides])
        done = through(Site(place.folder), name, *overrides, ranks=ranks)
        assert set(done.codes) == {0}, done.text()
        assert_same_training(place.runs(name), finished)


# -- stopped, killed, continued ---------------------------------------------------------------------------


def recorded(place: Place, name: str) -> tuple[str, str, list[int]]:
    """(id, status, steps of the training loss) of the only MLflow run called `name`."""
    with sqlite3.connect(place.folder / "runs" / "mlflow.db") as store:
        ((run_id, status),) = store.execute("select run_uuid, status from runs where name = ?", (name,)).fetchall()
        query = "select step from metrics where run_uuid = ? and key = 'train/loss' order by step"
        return run_id, status, [step for (step,) in store.execute(query, (run_id,))]


def test_stopped_run_continues_as_if_it_had_not_stopped(place: Place, finished: Path) -> None:
    arguments = place.arguments("stopped", "tracking.enabled=true")
    stopped = run_warm(PRETRAIN, *arguments, "training.stop_after_steps=4", cwd=place.folder)
    assert stopped.code == 75, stopped.err
    assert f"stopped after step 4 of {STEPS}" in stopped.out
    folder = place.runs("stopped")
    assert list(losses(folder)) == [1, 2, 3, 4]
    assert (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip() == "step-00000004"
    run_id, status, steps = recorded(place, "stopped")
    assert (status, steps) == ("KILLED", [1, 2, 3, 4])

    continued = run_warm(PRETRAIN, *arguments, cwd=place.folder)
    assert continued.code == 0, continued.err
    assert "resuming after step 4" in continued.out
    assert reproducible(folder) == reproducible(finished)  # to the last bit
    assert recorded(place, "stopped") == (run_id, "FINISHED", list(range(1, STEPS + 1)))


class TestKilled:
    """One rank of two is killed with -9, at a step and a rank that chance chose."""

    pytestmark = needs_deepspeed

    def test_killed_run_continues_as_if_nothing_had_happened(self, place: Place, two_ranks: Path) -> None:
        chance = random.Random(20261120)
        step, rank = chance.randint(EVERY + 1, STEPS - 3), chance.randint(0, 1)
        arguments = place.arguments("killed", "tracking.enabled=true")
        folder = place.runs("killed")
        with started(deepspeed(2, *arguments), place.folder) as process:
            victim = kill_at(process, folder, step, rank)
            _, err = process.communicate(timeout=60)
            code = process.returncode
        assert step in losses_so_far(folder), err  # otherwise it died before its time, of something else
        assert victim not in psutil.pids()
        assert code not in (0, 2, 75)
        assert max(losses_so_far(folder)) < STEPS, f"rank {rank} was killed at step {step}, but the run had ended"
        run_id = (folder / "mlflow_run_id").read_text(encoding="utf-8")

        again = through(Site(place.folder), "killed", "tracking.enabled=true")
        assert again.codes == [0, 0], again.text()
        assert "resuming after step" in again.text()
        assert reproducible(folder) == reproducible(two_ranks)  # to the last bit
        assert (folder / "mlflow_run_id").read_text(encoding="utf-8") == run_id
        assert recorded(place, "killed") == (run_id.strip(), "FINISHED", list(range(1, STEPS + 1)))
        assert not list((folder / "checkpoints").glob(".*"))  # nothing half-written is left


def losses_so_far(folder: Path) -> list[int]:
    """Steps that metrics.jsonl has, whole lines only: the file of a run that goes on or was killed."""
    path = folder / "metrics.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return [line["step"] for line in map(json.loads, whole) if "loss" in line]


def kill_at(process: subprocess.Popen[str], folder: Path, step: int, rank: int) -> int:
    """Wait for `step` to be reported, then kill `rank`; its process id."""

    def is_the_rank(child: psutil.Process) -> bool:
        try:
            return f"--local_rank={rank}" in child.cmdline()
        except psutil.Error:  # it has ended meanwhile
            return False

    def ranks() -> list[psutil.Process]:
        return [child for child in psutil.Process(process.pid).children(recursive=True) if is_the_rank(child)]

    found: list[psutil.Process] = []
    wait_until(lambda: bool(found.extend(ranks()) or found), 60, f"the launcher starts rank {rank}")
    (victim,) = found
    wait_until(lambda: step in losses_so_far(folder) or not victim.is_running(), 90, f"step {step} is reported")
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    return victim.pid
