"""What the training command refuses before anything is written, and what it only answers."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.e2e.commands import (
    GENERATE,
    PRETRAIN,
    Done,
    plain,
    run,
    run_warm,
    tree,
)
from tests.e2e.place import STEPS, Place, assert_refused

# -- bad input --------------------------------------------------------------------------------------------


def refuse(place: Place, words: list[str], *overrides: str, ranks: int = 1, name: str = "refused") -> None:
    """The main job refuses `overrides` on every one of `ranks` ranks; only rank 0 says why."""
    before = tree(place.folder)

    def rank_ends(rank: int) -> Done:
        launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        return run_warm(PRETRAIN, *place.arguments(name, *overrides), cwd=place.folder, extra=launched)

    with ThreadPoolExecutor(ranks) as pool:
        first, *others = pool.map(rank_ends, range(ranks))
    assert_refused(place, first, before, words)
    assert [(done.code, done.out, done.err) for done in others] == [(2, "", "")] * (ranks - 1)


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
    fields = [line.removeprefix("error: ").partition(":")[0] for line in done.err.splitlines()]
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


# -- commands that only answer ----------------------------------------------------------------------------


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
