"""`launchers/evaluate.py` on a model trained here: scores of an independent loop, resumed evaluations, bad input."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from data_prep import PrepareConfig, Tokenizer, TokenStream, prepare
from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.cell import Asker
from evaluation.babilong.generator import Sample
from evaluation.babilong.simulator import simulate
from evaluation.command import exercise_layout
from evaluation.results import load_results
from evaluation.suite import Cell
from launchers import babilong
from launchers.evaluate import main
from tests.e2e.commands import PRETRAIN, run_warm
from tests.unit.evaluation.test_mmlu import ROWS
from training.checkpoint.trained_model import LoadedModel, load_model

PIECES, LENGTH, BATCH, STEPS = 440, 128, 16, 110
ROOMS = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run trained on qa1 for some seconds, runs/tiny, and samples to test it on, test/."""
    folder = tmp_path_factory.mktemp("evaluate")
    texts = [" ".join((*q.facts, q.question, q.answer)) for q in islice(simulate("qa1", 0, "train"), 300)]
    train_sentencepiece(texts, PIECES, folder / "tokenizer.model")
    common = ["--tokenizer", str(folder / "tokenizer.model"), "--tasks", "qa1", "--seed", "1"]
    write = [*common, "--part", "train", "--lengths", "0k", "--samples", "3000", "--output", str(folder / "exercises")]
    assert babilong.main(write) == 0
    write = [*common, "--part", "test", "--lengths", "0k,150", "--samples", "24", "--output", str(folder / "test")]
    assert babilong.main(write) == 0
    source = {"kind": "task", "path": str(folder / "exercises"), "name": "babi", "pack_length": LENGTH}
    settings = {"sources": [source], "tokenizer": {"path": str(folder / "tokenizer.model")}, "workers": 1}
    settings["valid_fraction"] = 0.05
    prepare(PrepareConfig.model_validate(settings), folder / "data", Console(quiet=True))
    tokens = BATCH * LENGTH
    rate = {"peak": 4e-3, "warmup_tokens": 10 * tokens, "decay_tokens": 30 * tokens}
    run = {
        "run": {"name": "tiny", "output_dir": "runs"},
        "data": {"path": str(folder / "data"), "sequence_length": LENGTH, "prepare": settings},
        "model": {
            "vocab_size": PIECES, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "ffn_size": 96,
            "segment_length": 32, "memory": {"kind": "delta", "heads": 2},
        },
        "phases": [{"name": "task", "memory": True, "tokens": STEPS * tokens, "tokens_per_step": tokens, "lr": rate}],
        "training": {"micro_batch_size": BATCH, "eval_samples": 8},
        "checkpoint": {"every_steps": 1000},
        "tracking": {"enabled": False},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    done = run_warm(PRETRAIN, "--config", "run.yaml", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> LoadedModel:
    return load_model(place / "runs" / "tiny")


def evaluate(place: Path, *arguments: str, code: int = 0) -> None:
    assert main(["--checkpoint", str(place / "runs" / "tiny"), *arguments]) == code


def say(trained: LoadedModel, tokenizer: Tokenizer, row: dict[str, str]) -> str:
    """Greedy text after an exercise's prompt, everything read anew for every token."""
    ids = [tokenizer.bos_id, *tokenizer.encode(f"{row['input']}\n{row['question']}\n")]
    before = len(ids)
    while len(ids) < before + 20:
        with torch.no_grad():
            token = int(trained.net(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[before:])


def naive_official(output: str, row: dict[str, str]) -> bool:
    first = output.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    return {room for room in ROOMS if room in first and room not in row["question"].lower()} == {row["target"]}


def test_finetuned_scores_are_those_of_a_loop_over_the_same_files(
    place: Path, trained: LoadedModel, tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    arguments = ["--tasks", "babilong/qa1", "--lengths", "0k,150", "--mode", "finetuned", "--batch-size", "5"]
    evaluate(place, *arguments, "--released", str(place / "test"), "--output", str(output))
    results, tokenizer = load_results(output), trained.tokenizer()
    for length in ("0k", "150"):
        rows = json.loads((place / "test" / "qa1" / f"{length}.json").read_text())
        said = [say(trained, tokenizer, row) for row in rows]
        answers = (tmp_path / "scores.answers" / f"babilong-qa1-{length}.jsonl").read_text().splitlines()
        assert [json.loads(line)["output"] for line in answers] == said
        expected = {
            "exact": sum(text.strip().lower() == row["target"] for text, row in zip(said, rows, strict=True)),
            "official": sum(naive_official(text, row) for text, row in zip(said, rows, strict=True)),
        }
        for scorer, right in expected.items():
            (cell,) = [row for row in results.rows if row.length == length and row.scorer == scorer]
            assert (cell.accuracy, cell.samples, cell.mode) == (right / 24, 24, "finetuned")
    assert results.data["babilong"]["facts"] == "released JSON"
    shares = {row.accuracy for row in results.rows if row.length == "0k"}
    assert all(share is not None and 0 < share < 1 for share in shares)  # a model that is right at times


def test_finetuned_prompt_is_the_training_samples_beginning(place: Path, trained: LoadedModel) -> None:
    """Every prompt, answer and end that evaluation would make stands in the training data, token for token."""
    tokenizer = trained.tokenizer()
    stream = TokenStream(place / "data", sequence_length=LENGTH, seed=0)
    batch = stream.batch(range(len(stream)))
    ends = batch.tokens == tokenizer.eos_id
    found = set()
    for tokens, stops in zip(batch.tokens, ends, strict=True):
        start = 0
        for stop in np.flatnonzero(stops).tolist():
            found.add(tuple(tokens[start : stop + 1].tolist()))
            start = stop + 1
    asker = Asker(tokenizer, "finetuned", exercise_layout(trained.config))
    lines = [json.loads(x) for x in (place / "exercises" / "0k" / "qa1.jsonl").read_text().splitlines()]
    made = {
        (*asker.ids(Sample("qa1", "0k", x["context"], x["question"], x["answer"])), *tokenizer.encode(x["answer"]), 2)
        for x in lines
    }
    assert len(made & found) > 0.9 * len(made)  # the rest was held out for validation


def test_every_suite_at_the_default_place(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import csv

    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        with (tmp_path / split / f"virology_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(ROWS[:5])
    (tmp_path / "abstract.txt").write_text(" ".join(" ".join(q.facts) for q in islice(simulate("qa5", 0, "test"), 60)))
    names = "babilong/qa1,babilong/qa7,mmlu/virology,perplexity"
    options = ["--tasks", names, "--lengths", "0k,200", "--samples", "3", "--mmlu", str(tmp_path), "--shots", "1"]
    evaluate(place, *options, "--background", str(tmp_path / "abstract.txt"))
    results = load_results(place / "runs" / "tiny" / "evaluation" / f"step-{STEPS:08d}-prompt.json")
    tasks = [row.task for row in results.rows]
    assert tasks.count("babilong/qa7") == 2 * 3
    assert (tasks.count("mmlu/virology"), tasks.count("perplexity")) == (1, 1)
    assert results.model.kind == "delta"
    assert results.model.memory_on
    assert (results.data["babilong"]["facts"], results.data["mmlu"]["split"]) == ("simulator", "test")
    assert (results.tokens, results.phase) == (STEPS * BATCH * LENGTH, "task")
    curve = results.series["perplexity_by_position"]
    assert len(curve["position"]) == len(curve["loss"])
    assert curve["position"][-1] == 199
    (row,) = [row for row in results.rows if row.task == "perplexity"]
    spans = np.diff([0, *curve["position"]])
    assert row.value == pytest.approx(np.average(curve["loss"], weights=spans))
    shown = capsys.readouterr().out
    assert "facts: simulator" in shown
    assert "0:00 left" in shown
    assert "how the scorers agree on 12 answers" in shown
    evaluate(place, *options, "--background", str(tmp_path / "abstract.txt"), "--retrieval", "bm25", "--top-k", "2")
    rag = load_results(place / "runs" / "tiny" / "evaluation" / f"step-{STEPS:08d}-prompt-bm25.json")
    assert rag.model.kind == "delta+rag"
    read = [next(row.read for row in x.rows if row.length == "200") for x in (results, rag)]
    assert read[1] < read[0] - 50


def test_interrupted_evaluation_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--tasks", "babilong/qa1", "--mode", "finetuned", "--released", str(place / "test"), "--samples", "6"]
    evaluate(place, *options, "--lengths", "0k,150", "--output", str(tmp_path / "whole.json"))
    output, ran = tmp_path / "part.json", list[str]()

    def interrupted(cell: Cell) -> None:
        ran.append(cell.name)
        if len(ran) == 2:
            raise KeyboardInterrupt

    watch(monkeypatch, interrupted)
    evaluate(place, *options, "--lengths", "0k,150", "--output", str(output), code=130)
    assert {row.length for row in load_results(output).rows} == {"0k"}
    ran.append("again")
    evaluate(place, *options, "--lengths", "0k,150", "--output", str(output))
    assert ran[3:] == ["babilong/qa1 150"]
    assert load_results(output).rows == load_results(tmp_path / "whole.json").rows


def watch(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """`before(cell)` is called before a cell is measured."""
    import evaluation.suite

    original = evaluation.suite.Cell

    def watched(name: str, keys: Any, tokens: int, run: Any) -> Cell:
        def first(reader: Any) -> Any:
            before(cell)
            return run(reader)

        cell = original(name, keys, tokens, first)
        return cell

    monkeypatch.setattr(evaluation.suite, "Cell", watched)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "babylong"], "--tasks: 'babylong' is no task (did you mean 'babilong'?)"),
        (["--tasks", "mmlu/virologie"], "--tasks: 'mmlu/virologie' is no task (did you mean 'mmlu/virology'?)"),
        (["--tasks", "mmlu"], "--mmlu: is missing; MMLU's files (MIT) are at https://"),
        (["--lengths", "4kb"], "--lengths: '4kb' is no length"),
        (["--samples", "0"], "--samples: 0 must be at least 1"),
        (["--babi", "nowhere"], "--babi: nowhere is no folder; bAbI v1.2"),
        (["--released", "nowhere"], "--released: nowhere has no qa1/0k.json; https://huggingface.co"),
        (["--background", "nowhere"], "--background: nowhere is neither a text file"),
        (["--tasks", "perplexity", "--lengths", "0k"], "--lengths: perplexity needs a length above 0k"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = tmp_path / "x.json"
    evaluate(place, *arguments, "--output", str(output), code=2)
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_another_vocabulary_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(place / "exercises", tmp_path / "exercises")
    train_sentencepiece(["abc def ghi"] * 50, 280, tmp_path / "tokenizer.model")
    source = {"kind": "task", "path": str(tmp_path / "exercises"), "name": "babi"}
    settings = {"sources": [source], "tokenizer": {"path": str(tmp_path / "tokenizer.model")}, "workers": 1}
    prepare(PrepareConfig.model_validate(settings | {"valid_fraction": 0.05}), other, Console(quiet=True))
    evaluate(place, "--data", str(other), "--output", str(tmp_path / "x.json"), code=2)
    assert "is not the one" in capsys.readouterr().err
    evaluate(place, "--data", str(place / "data"), "--tasks", "babilong/qa1", "--lengths", "0k", "--samples", "1",
             "--output", str(tmp_path / "x.json"))  # fmt: skip


def test_results_of_other_settings_are_not_mixed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "babilong/qa1", "--lengths", "0k", "--output", str(tmp_path / "x.json")]
    evaluate(place, *options, "--samples", "2")
    before = (tmp_path / "x.json").read_bytes()
    evaluate(place, *options, "--samples", "3", code=2)
    assert "was made with samples 2, now 3; give another file, or delete it" in capsys.readouterr().err
    assert (tmp_path / "x.json").read_bytes() == before
