"""The commands people type, as they type them: train, stop, kill, continue, refuse, generate."""

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from tests.e2e.commands import (
    DEEPSPEED,
    GENERATE,
    PRETRAIN,
    Done,
    deepspeed,
    losses,
    metrics,
    plain,
    reproducible,
    run,
    run_warm,
    started,
    steps_of,
    tree,
    valid_losses,
    wait_until,
)

LENGTH, SEGMENT, PHASE_STEPS, EVERY = 64, 16, 6, 5
STEPS = 2 * PHASE_STEPS
TOKENS_PER_STEP = 4 * LENGTH

needs_deepspeed = [
    pytest.mark.skipif(not DEEPSPEED.is_file(), reason=f"{DEEPSPEED} is not there"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the launcher would give the ranks GPUs"),
]


@dataclass(frozen=True)
class Place:
    """A working folder with a configuration in it."""

    folder: Path
    config: str = "tiny.yaml"

    def runs(self, name: str) -> Path:
        return self.folder / "runs" / name

    def arguments(self, name: str, *overrides: str) -> list[str]:
        return ["--config", self.config, f"run.name={name}", *overrides]


@pytest.fixture(scope="module")
def place(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pretrain")

    def phase(name: str, memory: bool, **lr: Any) -> dict[str, Any]:
        tokens = PHASE_STEPS * TOKENS_PER_STEP - 1  # rounded up to whole steps
        return {"name": name, "memory": memory, "tokens": tokens, "tokens_per_step": TOKENS_PER_STEP, "lr": lr}

    config = {
        "run": {"name": "tiny", "output_dir": "runs"},
        "data": {"path": str(prepared_data), "sequence_length": LENGTH},
        "model": {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "ffn_size": 64,
            "segment_length": SEGMENT,
            "tie_embeddings": True,
            "memory": {"kind": "lm2", "flow": "time", "slots": 4, "heads": 2},
        },
        "phases": [
            phase("warmup", False, peak=4e-3, warmup_tokens=2 * TOKENS_PER_STEP),
            phase("memory", True, peak=4e-3, warmup_tokens=2 * TOKENS_PER_STEP, decay_tokens=3 * TOKENS_PER_STEP),
        ],
        "training": {"micro_batch_size": 1, "eval_every_steps": 4, "eval_samples": 5},
        "checkpoint": {"every_steps": EVERY, "keep_last": 2},
        "tracking": {"enabled": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return Place(folder)


@pytest.fixture(scope="module")
def finished(place: Place) -> Path:
    """The folder of a run that one process trained without interruption."""
    done = run(plain(PRETRAIN, *place.arguments("finished")), place.folder)
    assert done.code == 0, done.err
    assert f"finished: {STEPS} steps" in done.out
    return place.runs("finished")


@pytest.fixture(scope="module")
def two_ranks(place: Place) -> Path:
    """The folder of a run that two data-parallel ranks trained without interruption."""
    done = run(deepspeed(2, *place.arguments("two")), place.folder)
    assert done.code == 0, done.err
    return place.runs("two")


# -- a run from beginning to end -------------------------------------------------------------------------------------


def test_run_folder_has_the_promised_layout(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    told = {"environment.txt", "starts.jsonl", "ended.json", "lock"}
    assert names == {"config.yaml", "metrics.jsonl", "loss.png", "log", "checkpoints"} | told
    assert [path.name for path in (finished / "log").iterdir()] == ["rank-0.log"]
    resolved = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["run"]["name"] == "finished"
    assert resolved["training"]["zero_stage"] == 1  # a default is written down too
    picture = (finished / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")
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
    assert [line.keys() - plain_keys for line in lines] == [set(), set(), set(), {"wiped_valid_loss"}]
    assert all(plain_keys <= line.keys() for line in lines)
    assert lines[0]["valid_loss"] > lines[-1]["valid_loss"]
    assert lines[-1]["wiped_valid_loss"] != lines[-1]["valid_loss"]


def test_running_a_finished_run_again_changes_nothing(place: Place, finished: Path) -> None:
    before = tree(place.folder)
    again = run(plain(PRETRAIN, *place.arguments("finished")), place.folder)
    assert again.code == 0
    assert again.err == ""
    assert f"{Path('runs') / 'finished'} is finished: {STEPS} steps" in again.out
    assert "run.name=" in again.out  # how to start anew
    assert "warmup" not in again.out  # nothing was trained
    assert tree(place.folder) == before


# -- other topologies ------------------------------------------------------------------------------------------------


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
        done = run(deepspeed(ranks, *place.arguments(name, *overrides)), place.folder, timeout=200)
        assert done.code == 0, done.err
        assert_same_training(place.runs(name), finished)


# -- stopped, killed, continued --------------------------------------------------------------------------------------


def recorded(place: Place, name: str) -> tuple[str, str, list[int]]:
    """(id, status, steps of the training loss) of the only MLflow run called `name`."""
    with sqlite3.connect(place.folder / "runs" / "mlflow.db") as store:
        ((run_id, status),) = store.execute("select run_uuid, status from runs where name = ?", (name,)).fetchall()
        query = "select step from metrics where run_uuid = ? and key = 'train/loss' order by step"
        return run_id, status, [step for (step,) in store.execute(query, (run_id,))]


def test_stopped_run_continues_as_if_it_had_not_stopped(place: Place, finished: Path) -> None:
    arguments = place.arguments("stopped", "tracking.enabled=true")
    stopped = run(plain(PRETRAIN, *arguments, "training.stop_after_steps=4"), place.folder)
    assert stopped.code == 75, stopped.err
    assert f"stopped after step 4 of {STEPS}" in stopped.out
    folder = place.runs("stopped")
    assert list(losses(folder)) == [1, 2, 3, 4]
    assert (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip() == "step-00000004"
    run_id, status, steps = recorded(place, "stopped")
    assert (status, steps) == ("KILLED", [1, 2, 3, 4])

    continued = run(plain(PRETRAIN, *arguments), place.folder)
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

        again = run(deepspeed(2, *arguments), place.folder)
        assert again.code == 0, again.err
        assert "resuming after step" in again.out
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


# -- bad input -------------------------------------------------------------------------------------------------------


def assert_refused(place: Place, done: Done, before: dict[str, tuple[int, str]], words: list[str]) -> None:
    """Exit code 2, one line on standard error that has `words`, nothing written."""
    assert done.code == 2, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert all(word in line for word in words), line
    assert tree(place.folder) == before


def refuse(place: Place, words: list[str], *overrides: str, ranks: int = 1, name: str = "refused") -> None:
    """The main job refuses `overrides` on every one of `ranks` ranks; only rank 0 says why."""
    before = tree(place.folder)
    for rank in range(ranks):
        launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        done = run_warm(PRETRAIN, *place.arguments(name, *overrides), cwd=place.folder, extra=launched)
        if rank == 0:
            assert_refused(place, done, before, words)
        else:
            assert (done.code, done.out, done.err) == (2, "", "")
            assert tree(place.folder) == before


@pytest.fixture
def data_copy(place: Place, prepared_data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared_data, tmp_path / "data")


def test_unknown_key_from_a_cold_start(place: Place) -> None:
    before = tree(place.folder)
    done = run(plain(PRETRAIN, *place.arguments("refused", "model.memory.slost=3")), place.folder)
    assert_refused(place, done, before, ["model.memory.slost", "did you mean 'slots'?"])


def test_several_problems_are_several_lines(place: Place) -> None:
    done = run_warm(PRETRAIN, *place.arguments("x", "parallel.tensor=3", "parallel.pipeline=9"), cwd=place.folder)
    assert done.code == 2
    fields = [line.partition(":")[0] for line in done.err.splitlines()]
    assert {"model.num_heads", "parallel.pipeline"} < set(fields)
    assert not any("Traceback" in field for field in fields)
    assert not place.runs("x").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=nowhere"], ["nowhere/manifest.json", "prepare_data.py"]),
        (["model.vocab_size=511"], ["model.vocab_size: 511", "512 pieces", "512 or more"]),
        (["data.sequence_length=1048576", "phases.0.tokens_per_step=1048576", "phases.1.tokens_per_step=1048576"],
         ["sequence_length", "1048576", "lower"]),
        (["phases.0.mix={books: 1}"], ["books", "python-stdlib"]),
        (["phases.0.init_from=hf:nowhere"], ["phases.0.init_from", "nowhere", "safetensors"]),
        (["phases.1.init_from=checkpoint:nowhere"], ["phases.1.init_from: nowhere", "RUN/checkpoints/step-XXXXXXXX"]),
        (["parallel.tensor=2"], ["1 ranks were started", "tensor 2"]),
        (["training.micro_batch_size=3"], ["phases.0.tokens_per_step", "micro_batch_size 3"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)  # fmt: skip
def test_bad_input_is_refused(place: Place, overrides: list[str], words: list[str]) -> None:
    refuse(place, words, *overrides)


@pytest.mark.parametrize(
    ("ranks", "overrides", "words"),
    [
        (2, ["parallel.tensor=3"], ["2 ranks", "tensor 3"]),
        (3, ["parallel.tensor=2"], ["3 ranks were started", "tensor 2 x pipeline 1", "4"]),
        (3, [], ["phases.0.tokens_per_step", "3 data-parallel ranks"]),
    ],
)
def test_world_that_does_not_fit_is_refused_by_every_rank(
    place: Place, ranks: int, overrides: list[str], words: list[str]
) -> None:
    if overrides == ["parallel.tensor=3"]:  # shapes that three ranks can share, so that only the world is wrong
        model = {"num_heads": 3, "num_kv_heads": 3, "hidden_size": 36, "ffn_size": 66, "vocab_size": 513}
        overrides = [*overrides, *(f"model.{name}={value}" for name, value in model.items()), "model.memory.heads=3"]
    refuse(place, words, *overrides, ranks=ranks)


def test_run_of_another_configuration_is_refused(place: Place, finished: Path) -> None:
    refuse(place, ["finished", "model.ffn_size was 64, is now 32"], "model.ffn_size=32", name="finished")
    refuse(place, ["finished", "run.seed was 0, is now 1"], "run.seed=1", name="finished")


def test_run_folder_that_is_no_run_is_refused(place: Place) -> None:
    foreign = place.runs("foreign")
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("years of work", encoding="utf-8")
    refuse(place, ["foreign", "not empty"], name="foreign")


def test_replaced_tokenizer_is_refused(place: Place, data_copy: Path) -> None:
    (data_copy / "tokenizer.model").write_bytes(b"another one")
    refuse(place, [str(data_copy / "tokenizer.model"), "fingerprint"], f"data.path={data_copy}")


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_shard_that_is_not_whole_is_refused(place: Place, data_copy: Path, damage: str) -> None:
    shard = next(data_copy.glob("train-*.arrow"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    refuse(place, [str(shard), "missing" if damage == "missing" else "cut short"], f"data.path={data_copy}")


def test_other_data_for_the_same_run_is_refused(place: Place, finished: Path, data_copy: Path) -> None:
    manifest = data_copy / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["shards"][0]["xxh3"] = "0" * 16
    manifest.write_text(json.dumps(content | {"checksum": ""}), encoding="utf-8")  # sealed by nobody, as old ones are
    refuse(place, ["data.path", str(data_copy), "fingerprint"], f"data.path={data_copy}", name="finished")


def test_data_that_only_moved_is_accepted(place: Place, finished: Path, data_copy: Path) -> None:
    done = run_warm(PRETRAIN, *place.arguments("finished", f"data.path={data_copy}"), cwd=place.folder)
    assert done.code == 0, done.err
    assert "is finished" in done.out


def test_tracking_store_that_cannot_be_opened_is_refused(place: Place) -> None:
    before = tree(place.folder)
    wrong = ("tracking.enabled=true", "tracking.uri=nosuchscheme://x")
    done = run_warm(PRETRAIN, *place.arguments("untracked", *wrong), cwd=place.folder)
    assert (done.code, done.out) == (2, "")
    assert "tracking.uri" in done.err
    after = tree(place.folder)
    # the lock, which was taken before MLflow was asked and is gone again, has touched the folder of all runs
    assert after.pop("runs")[1] == before.pop("runs")[1] == "folder"
    assert after == before


@pytest.mark.parametrize("content", ["run: [", "", "- a\n"], ids=["broken", "empty", "list"])
def test_run_folder_with_a_damaged_config_is_refused(place: Place, content: str) -> None:
    folder = place.runs("damaged-config")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(content, encoding="utf-8")
    refuse(place, [str(Path("damaged-config") / "config.yaml")], name="damaged-config")


def test_file_in_place_of_the_run_folder_is_refused(place: Place) -> None:
    place.runs("file").parent.mkdir(exist_ok=True)
    place.runs("file").write_text("not a folder", encoding="utf-8")
    refuse(place, ["file"], name="file")


def test_killed_while_writing_the_config_can_be_started_again(place: Place) -> None:
    folder = place.runs("early")
    folder.mkdir(parents=True)
    (folder / ".config.yaml.partial").write_text("run:\n", encoding="utf-8")
    done = run_warm(PRETRAIN, *place.arguments("early", "training.stop_after_steps=1"), cwd=place.folder)
    assert done.code == 75, done.err


# -- commands that only answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [PRETRAIN, GENERATE], ids=lambda path: path.stem)
def test_help_teaches_from_any_folder(script: Path, tmp_path: Path) -> None:
    done = run(plain(script, "--help"), tmp_path, timeout=20)
    assert (done.code, done.err) == (0, "")
    assert f"launchers/{script.name}" in done.out  # an example to copy
    assert "--config" in done.out
    assert not list(tmp_path.iterdir())


def test_dry_run_describes_and_writes_nothing(place: Place) -> None:
    before = tree(place.folder)
    done = run_warm(PRETRAIN, *place.arguments("dry", "--dry-run"), cwd=place.folder)
    assert (done.code, done.err) == (0, "")
    assert f"{STEPS} steps" in done.out
    assert "parameters" in done.out
    assert "phase memory: memory on" in done.out
    assert tree(place.folder) == before


def test_printed_config_is_the_resolved_one_and_loads_again(place: Place, tmp_path: Path) -> None:
    before = tree(place.folder)
    done = run_warm(PRETRAIN, *place.arguments("printed", "run.seed=7", "--print-config"), cwd=place.folder)
    assert (done.code, done.err) == (0, "")
    printed = yaml.safe_load(done.out)
    assert (printed["run"]["name"], printed["run"]["seed"]) == ("printed", 7)
    assert printed["training"]["betas"] == [0.9, 0.95]
    (tmp_path / "again.yaml").write_text(done.out, encoding="utf-8")
    again = run_warm(PRETRAIN, "--config", str(tmp_path / "again.yaml"), "--print-config", cwd=place.folder)
    assert (again.code, again.out) == (0, done.out)
    assert tree(place.folder) == before


@pytest.mark.parametrize("option", [["--config", "tiny.yaml"], ["--dry-run"]], ids=" ".join)
def test_overrides_may_stand_on_both_sides_of_an_option(place: Place, option: list[str]) -> None:
    first = [] if "--config" in option else ["--config", place.config]
    arguments = [*first, "run.name=both", *option, "run.seed=7"]
    done = run_warm(PRETRAIN, *arguments, "--print-config", cwd=place.folder)
    assert done.code == 0, done.err


# -- text from a checkpoint ------------------------------------------------------------------------------------------

Generate = Callable[..., str]


@pytest.fixture
def text(place: Place, finished: Path) -> Generate:
    """What `generate.py` prints for a prompt."""

    def generated(prompt: str, *arguments: str) -> str:
        given = ["--checkpoint", "runs/finished", "--prompt", prompt, *arguments]
        done = run_warm(GENERATE, *given, cwd=place.folder)
        assert done.code == 0, done.err
        assert done.out.startswith(prompt)
        assert "step-00000012" in done.err
        return done.out.removesuffix("\n")

    return generated


def test_greedy_text_is_the_same_twice(place: Place, finished: Path, text: Generate) -> None:
    before = tree(place.folder)
    greedy = ["--max-tokens", "40", "--temperature", "0"]
    once = run(plain(GENERATE, "--checkpoint", "runs/finished", "--prompt", "def ", *greedy), place.folder)
    assert once.code == 0, once.err
    assert len(once.out) > len("def \n")
    assert text("def ", *greedy) + "\n" == once.out
    assert tree(place.folder) == before


def test_seed_decides_the_drawn_text(text: Generate) -> None:
    drawn = [text("def ", "--max-tokens", "40", "--temperature", "1", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_prompt_of_several_segments_is_continued_as_the_model_says(finished: Path, text: Generate) -> None:
    from training.checkpoint.trained_model import load_model

    prompt = "".join(f"    def method_{number}(self):\n        return {number}\n" for number in range(8))
    trained = load_model(finished)
    tokenizer = trained.tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    assert len(ids) > 5 * SEGMENT
    assert len(ids) % SEGMENT  # it ends inside a segment
    with torch.no_grad():
        logits = trained.net(torch.tensor([ids])).logits[0, -1]
    likeliest = [int(i) for i in (logits >= logits.max() - 1e-3).nonzero()]
    continued = text(prompt, "--max-tokens", "1", "--temperature", "0").removeprefix(prompt)
    assert continued in [tokenizer.decode([i]) for i in likeliest]


def test_prompt_from_a_file_and_the_run_of_a_configuration(place: Place, finished: Path, text: Generate) -> None:
    prompt = place.folder / "prompt.txt"
    prompt.write_text("def ", encoding="utf-8")
    try:
        given = ["--prompt-file", "prompt.txt", "--max-tokens", "20", "--temperature", "0"]
        done = run_warm(GENERATE, *place.arguments("finished"), *given, cwd=place.folder)
    finally:
        prompt.unlink()
    assert done.code == 0, done.err
    assert done.out.removesuffix("\n") == text("def ", "--max-tokens", "20", "--temperature", "0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "runs/nowhere"], ["runs/nowhere", "no checkpoint"]),
        (["--checkpoint", "."], ["no checkpoint"]),
        (["--checkpoint", "runs/finished", "--temperature", "-1"], ["temperature", "-1", "0 is greedy"]),
        (["--checkpoint", "runs/finished", "--top-p", "1.5"], ["top_p", "1.5"]),
        (["--checkpoint", "runs/finished", "--prompt-file", "nowhere.txt"], ["nowhere.txt"]),
        (["--checkpoint", "runs/finished", "--data", "nowhere"], ["nowhere/manifest.json"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
    ],
    ids=" ".join,
)
def test_generate_refuses_bad_input(place: Place, finished: Path, arguments: list[str], words: list[str]) -> None:
    before = tree(place.folder)
    assert_refused(place, run_warm(GENERATE, *arguments, cwd=place.folder), before, words)
