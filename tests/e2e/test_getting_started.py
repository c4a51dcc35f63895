"""The pages of Getting started, in their order in one folder: every command as typed, except for the sizes of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import story_of
from evaluation.babilong.tasks import TASKS
from tests.e2e.commands import ROOT, environment
from tests.unit.evaluation.babilong_material import as_babi
from tests.unit.test_front_door import fenced

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TEXTS = sorted(topics.values())  # Python's manual
WARMUP = "phases.0.tokens=16384 phases.0.lr.warmup_tokens=8192"
SHORT = f"{WARMUP} phases.1.tokens=16384 phases.1.lr.warmup_tokens=8192 phases.1.lr.decay_tokens=8192"
FOUR = " ".join(f"phases.{phase}.tokens=8192" for phase in range(4))
# Answers of a cluster of 8 nodes; tests/slurm trains on a real one.
NODES = "\n".join(f"n{number}|128|2000000|gpu:8|idle|" for number in range(8))
SLURM = {
    "sbatch": "echo 1234",
    "squeue": "echo 1234 PENDING",
    "scontrol": "echo 'PartitionName=gpu State=UP MaxTime=UNLIMITED MaxNodes=UNLIMITED'",
    "sinfo": f"case \"$*\" in *%P) echo 'gpu*';; *) echo '{NODES}';; esac",
}
# What is shortened on each page: a text of it, and what is run instead.
SHORTER = {
    "quickstart": {
        "launchers.pretrain --config quickstart": f"launchers.pretrain --config quickstart {SHORT}",
        "memtrain pretrain --config quickstart": f"memtrain pretrain --config quickstart {SHORT}",
    },
    "corpus": {
        "vocab_size: 32000": "vocab_size: 600",
        "valid_fraction: 0.01": "valid_fraction: 0.1",
        "memtrain pretrain --config mine.yaml\n": f"memtrain pretrain --config mine.yaml {SHORT}\n",
    },
    "llama": {
        "tokens: 1000000000": "tokens: 65536",
        "tokens_per_step: 1048576": "tokens_per_step: 32768",
        "warmup_tokens: 20000000, decay_tokens: 100000000": "warmup_tokens: 32768, decay_tokens: 32768",
    },
    "slurm": {" --watch 5": ""},
    "babilong": {
        "0k,1k,4k,16k --samples 100": "0k,1k --samples 2",
        "--samples 20000": "--samples 40",
        "max_bytes=6000000": "max_bytes=600000",
        "pretrain --config babilong": f"pretrain --config babilong {FOUR} phases.0.lr.warmup_tokens=4096 "
        "phases.3.lr.decay_tokens=4096",
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with what the pages assume: texts, bAbI's files, a Llama beside it, a Slurm that answers."""
    folder = tmp_path_factory.mktemp("user") / "work"
    for books, number in ((folder / "corpus" / "books", len(TEXTS)), (folder / "data" / "books", 5)):
        books.mkdir(parents=True)
        for book in range(number):
            (books / f"{book}.txt").write_text("\n\n".join(TEXTS[book::number]))
    with pa.CompressedOutputStream(str(folder / "corpus" / "web.jsonl.zst"), "zstd") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    babi = folder / "data" / "babi"
    babi.mkdir()
    for task in TASKS:
        for split, seed in (("train", 1), ("test", 2)):
            stories = [story_of(tell_story(task, Keyed(task, seed, number))) for number in range(250)]
            (babi / f"{task}_{split}.txt").write_text(as_babi(stories))
    (folder / "question.txt").write_text(TEXTS[0][:1500] + " Mary went to the garden. Where is Mary? ")
    a_llama(folder.parent / "Llama-3.2-1B")
    programs = folder.parent / "bin"
    programs.mkdir()
    for name, answer in SLURM.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    return folder


def a_llama(folder: Path) -> None:
    """A folder as on Hugging Face, of a very small Llama that reads Llama's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:40], trainer)
    sizes = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def steps(page: str) -> list[tuple[str, str]]:
    """Language and content of a page's code blocks, with its runs shortened."""
    text = (ROOT / "docs" / "start" / f"{page}.md").read_text(encoding="utf-8")
    for typed, run in SHORTER[page].items():
        assert typed in text, f"{page}.md has no {typed!r}"
        text = text.replace(typed, run)
    return [step for step in fenced(text) if "make quickstart" not in step[1]]


def shell(place: Path, block: str) -> str:
    """What a block of commands prints, typed into a shell of an environment that has memtrain."""
    path = f"{Path(sys.executable).parent}:{place.parent / 'bin'}:{os.environ['PATH']}"
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"} | {"PATH": path}
    command = ["bash", "-exc", block]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def changed(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """`config` with the fields of a page; a tokenizer is written as a whole."""
    out = dict(config)
    for key, value in fields.items():
        inside = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "tokenizer"
        out[key] = changed(out[key], value) if inside else value
    return out


def test_quickstart(place: Path) -> None:
    printed = "".join(shell(place, block) for _, block in steps("quickstart"))
    assert "memory ablated" in printed
    assert all((place / "runs" / name / "loss.png").exists() for name in ("quickstart", "delta", "llama"))
    page = (ROOT / "docs" / "start" / "quickstart.md").read_text(encoding="utf-8")
    promised = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `runs/")]
    assert len(promised) >= 8
    assert not [name for name in promised if not (place / name.replace("rank-N", "rank-1")).exists()]


def test_corpus(place: Path) -> None:
    (_, first), (language, fields), (_, commands) = steps("corpus")
    assert language == "yaml"
    shell(place, first)
    mine = place / "mine.yaml"
    mine.write_text(yaml.safe_dump(changed(yaml.safe_load(mine.read_text()), yaml.safe_load(fields))))
    assert "memory ablated" in shell(place, commands)


def test_llama(place: Path) -> None:
    (_, first), (language, fields), (_, commands) = steps("llama")
    assert language == "yaml"
    shell(place, first)
    base = yaml.safe_load((place / "mine.yaml").read_text()) | yaml.safe_load((place / "model.yaml").read_text())
    (place / "llama.yaml").write_text(yaml.safe_dump(changed(base, yaml.safe_load(fields))))
    assert "largest logit difference" in shell(place, commands)


def test_slurm(place: Path) -> None:
    (_, first), (language, profile), (_, commands) = steps("slurm")
    assert language == "yaml"
    assert "fastest" in shell(place, first)
    (place / "my-cluster.yaml").write_text(profile)
    printed = shell(place, commands)
    assert "#SBATCH" in printed and "1234" in printed


def test_babilong(place: Path) -> None:
    printed = "".join(shell(place, block) for _, block in steps("babilong"))
    assert "babilong/qa1" in printed
    assert (place / "runs" / "babilong" / "loss.png").exists()
