"""References, a model that reads them, its bank, and text from both: by the commands alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep import ReferenceStore
from data_prep.bank import Bank
from evaluation.questions import MODES
from evaluation.results import load_results
from model.fingerprint import weights_fingerprint
from tests.e2e.commands import GENERATE, PRETRAIN, ROOT, Done, run_warm
from training.checkpoint.trained_model import load_model

pytestmark = pytest.mark.memory3
PREPARE, WRITE, EVALUATE = (ROOT / "launchers" / f"{name}.py" for name in ("prepare_data", "write_bank", "evaluate"))
PHASE = {"tokens": 1024, "tokens_per_step": 512, "lr": {"schedule": "wsd", "peak": 1e-3, "warmup_tokens": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained with references for two steps."""
    root = tmp_path_factory.mktemp("bank")
    data: dict[str, Any] = {
        "path": "data",
        "sequence_length": 128,
        "references": {"path": "refs", "prepare": {"workers": 1}},
    }
    texts = [path.read_text() for path in sorted((ROOT / "data_prep").rglob("*.py"))]  # our own: small, and there
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = {"kind": "jsonl", "path": "texts.jsonl"}
    data["prepare"] = {"sources": [source], "valid_fraction": 0.2, "workers": 1}
    data["prepare"]["tokenizer"] = {"vocab_size": 512, "train_bytes": 60_000}
    model = {"vocab_size": 512, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 48}
    settings = {
        "run": {"name": "run", "output_dir": "runs", "seed": 0},
        "data": data,
        "model": model | {"segment_length": 128, "explicit": {}},
        "phases": [{"name": "continual", "memory": True} | PHASE],
        "training": {"micro_batch_size": 4, "precision": "fp32", "eval_samples": 4},
        "tracking": {"enabled": False},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(settings))
    for script in (PREPARE, PRETRAIN):
        done = run_warm(script, "--config", "run.yaml", cwd=root)
        assert done.code == 0, done.err
    return root


def write(folder: Path, output: str, *arguments: str, checkpoint: str = "runs/run") -> Done:
    places = ("--checkpoint", checkpoint, "--references", "refs", "--output", output)
    return run_warm(WRITE, *places, *arguments, cwd=folder)


def opened(folder: Path, output: str) -> Bank:
    net = load_model(folder / "runs" / "run").net
    return Bank(folder / output, weights_fingerprint(net))


def test_shares_make_one_bank(folder: Path) -> None:
    first = write(folder, "bank", "--share", "0/2")
    assert first.code == 0, first.err
    assert not (folder / "bank" / "manifest.json").exists()  # the other half is missing
    assert write(folder, "bank", "--share", "1/2").code == 0
    assert write(folder, "whole").code == 0
    store = ReferenceStore(folder / "refs")
    with opened(folder, "bank") as bank, opened(folder, "whole") as whole:
        assert len(bank) == len(whole) == len(store) > 20
        ids = np.arange(0, len(store), 7)
        assert (bank.read(ids) == whole.read(ids)).all()


def test_started_again_nothing_is_written_twice(folder: Path) -> None:
    assert write(folder, "again").code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "again").glob("bank-*")}
    done = write(folder, "again")
    assert "references were written before" in done.err
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "again").glob("bank-*")} == before


def test_text_with_a_bank(folder: Path) -> None:
    assert write(folder, "text").code == 0
    prompts = ("--prompt", "def main():", "--prompt", "import os", "--max-tokens", "80", "--temperature", "0")
    common = ("--checkpoint", "runs/run", *prompts, "--references", "refs")
    with_bank, without = (run_warm(GENERATE, *common, *more, cwd=folder) for more in (("--bank", "text"), ()))
    assert with_bank.code == without.code == 0, with_bank.err
    assert with_bank.out.count("── ") == 2
    assert "def main():" in with_bank.out
    # bfloat16 in the bank may change a near tie; what is written at once is fp32.
    assert with_bank.out[:30] == without.out[:30]


def test_a_bank_of_other_weights_is_refused(folder: Path) -> None:
    assert write(folder, "old").code == 0
    manifest = folder / "old" / "manifest.json"
    more = run_warm(PRETRAIN, "--config", "run.yaml", "run.name=other", "run.seed=1", cwd=folder)
    assert more.code == 0, more.err
    common = ("--checkpoint", "runs/other", "--prompt", "x", "--references", "refs", "--bank", "old")
    done = run_warm(GENERATE, *common, cwd=folder)
    assert done.code == 2
    assert "whose weights cannot read its keys and values" in done.err
    before = manifest.read_bytes()
    refused = write(folder, "old", checkpoint="runs/other")
    assert refused.code == 2
    assert "was written with model" in refused.err
    assert manifest.read_bytes() == before
    assert write(folder, "none", "--share", "2/2").code == 2


def test_questions_and_perplexity_with_the_bank(folder: Path, tmp_path: Path) -> None:
    assert write(folder, "asked").code == 0
    lines = [{"question": f"what imports {name}?", "answers": [name], "passage": name} for name in ("os", "json")]
    (tmp_path / "nq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.json"
    arguments = ["--tasks", "nq,perplexity", "--questions", str(tmp_path / "nq.jsonl"), "--lengths", "200"]
    places = ["--references", "refs", "--bank", "asked", "--output", str(output), "--samples", "2"]
    done = run_warm(EVALUATE, "--checkpoint", "runs/run", *arguments, *places, cwd=folder)
    assert done.code == 0, done.err
    rows = {(row.task, row.scorer): row for row in load_results(output).rows}
    for mode in MODES:
        assert rows[f"nq/{mode}", "exact"].samples == rows[f"nq/{mode}", "contains"].samples == 2
    values = [rows[f"perplexity/{name}", "nats per token"].value for name in ("without memory", "explicit memory")]
    assert all(value is not None and 0 < value < 10 for value in values)
    assert abs(values[0] - values[1]) > 0.01
    assert "nq/explicit memory" in done.out
    assert len((output.with_suffix(".answers") / "nq-closed-book.jsonl").read_text().splitlines()) == 2
    refused = run_warm(EVALUATE, "--checkpoint", "runs/run", "--tasks", "nq", "--bank", "asked", cwd=folder)
    assert refused.code == 2 and "needs --references" in refused.err
