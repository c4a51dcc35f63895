"""Explicit memory on small models trained here: does it lower the loss, and answer what the weights do not know.

python experiments/memory3.py                 under an hour on 2 CPU cores
python experiments/memory3.py --small         2 minutes, to try it: too short to learn anything
python experiments/memory3.py --only facts    one part: facts or text
python experiments/memory3.py --folder F      works in F; the same command again goes on where it ended

facts: people who do not exist. Pages ask about them; the answers stand in references alone, so nothing but reading
    can know them. A warm-up on pages that state the facts first, then the same steps with references and without, from
    the same checkpoint. Questions are about people that no page is about.
text: the same two stages on real text, whose references are the text's own documents: Python's standard library, or
    with MEMTRAIN_DATA the books and the passages of questions there, and then those questions.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from evaluation.memories import open_source
from evaluation.questions import Question, evaluate_questions, load_questions
from evaluation.results import Row
from experiments.memory3_parts.facts import write_corpus
from experiments.memory3_parts.runs import ROOT, command, last_loss, newest, two_stages
from training.checkpoint.trained_model import load_model

PARTS = ("facts", "text")
PEOPLE = 16_000  # on pages of each kind
FACTS_TOKENS = (4_000_000, 1_500_000)  # warm-up, continual
TEXT_TOKENS = (2_000_000, 800_000)
SMALL = 60  # times fewer


def base_settings() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "memory3_small.yaml").read_text())
    settings["checkpoint"] = {"every_steps": 50, "keep_last": 1}
    return settings


def facts(work: Path, share: int) -> None:
    """Answers that only references hold."""
    people = max(PEOPLE // share, 1000)
    write_corpus(work / "corpus", people, 400 // min(share, 4), seed=0)
    settings = base_settings()
    sources = [{"kind": "jsonl", "path": str(work / "corpus" / f"{name}.jsonl"), "name": name} for name in _PAGES]
    references = {"kind": "jsonl", "path": str(work / "corpus" / "references.jsonl")}
    settings["data"] = {"path": str(work / "data"), "sequence_length": 512}
    settings["data"]["prepare"] = {
        "sources": sources,
        "valid_fraction": 0.03,
        "tokenizer": {"vocab_size": 512, "train_bytes": 2_000_000},
    }
    settings["data"]["references"] = {
        "path": str(work / "references"),
        "prepare": {"sources": [references], "length": 64},
    }
    settings["model"] |= {"vocab_size": 512}
    settings["model"]["explicit"] |= {"reference_length": 64, "layers": "all"}
    mixes = {"open": 0.8, "closed": 0.2}, {"open": 0.2, "closed": 0.8}
    warmup, continual = (count // share for count in FACTS_TOKENS)
    runs = two_stages(settings, work, warmup, continual, mixes)
    compare(runs, "facts")
    rows = answer(runs["with"], work, load_questions(work / "corpus" / "questions.jsonl"))
    closed, told, memory = (share_of(rows, mode) for mode in ("closed book", "text in prompt", "explicit memory"))
    claim("facts: right answers with explicit memory less twice the closed book's", memory - 2 * closed, "> 0",
          memory > 2 * closed)  # fmt: skip
    claim("facts: right answers with explicit memory less those with references as text", memory - told, "> 0",
          memory > told)  # fmt: skip


_PAGES = ("open", "closed")


def text(work: Path, share: int) -> None:
    """Real text, and questions about real passages where there are some."""
    settings, folder = base_settings(), os.environ.get("MEMTRAIN_DATA")
    settings["data"]["path"] = str(work / "data")
    settings["data"]["references"]["path"] = str(work / "references")
    questions = load_questions(Path(folder) / "nq_oracle") if folder else []
    if folder:
        passages = work / "passages"
        passages.mkdir(parents=True, exist_ok=True)
        for number, question in enumerate(questions):
            (passages / f"{number:05d}.txt").write_text(f"{question.title}\n{question.passage}\n")
        sources = [
            {"kind": "text", "path": str(Path(folder) / "books"), "name": "books"},
            {"kind": "text", "path": str(passages), "name": "passages"},
        ]
        settings["data"]["prepare"] |= {"sources": sources, "valid_fraction": 0.1}
        # All of both: the passages that are asked about must be in the bank, held out or not.
        settings["data"]["references"]["prepare"] |= {"sources": sources}
    warmup, continual = (count // share for count in TEXT_TOKENS)
    runs = two_stages(settings, work, warmup, continual, (None, None))
    compare(runs, "text")
    if questions:
        answer(runs["with"], work, questions[:: max(1, len(questions) // (400 // min(share, 8)))])


def compare(runs: dict[str, Path], name: str) -> None:
    """Held-out loss of the two continual runs."""
    with_memory, without = last_loss(runs["with"]), last_loss(runs["without"])
    print(f"{name}: held-out loss {with_memory:.4f} with references, {without:.4f} without")
    claim(f"{name}: held-out nats a token saved by references", without - with_memory, "> 0", with_memory < without)


def answer(run: Path, work: Path, questions: list[Question]) -> list[Row]:
    """Questions in the three modes, with memories out of a bank that is written for it."""
    references, bank = work / "references", work / "bank"
    command("write_bank.py", "--checkpoint", str(run), "--references", str(references), "--output", str(bank))
    trained = load_model(newest(run))
    tokenizer = trained.tokenizer()
    source = open_source(trained.net, references, bank, tokenizer.fingerprint)
    rows, answered = evaluate_questions(trained.net, tokenizer, questions, source)
    source.close()
    for row in rows:
        print(f"  {row.task:22s} {row.scorer:9s} {row.accuracy:.3f}  [{row.low:.3f}, {row.high:.3f}] of {row.samples}")
    for each in answered[:: max(1, len(answered) // 6)]:
        print(f"  {each.mode}: {each.question} -> {each.said!r} (right: {each.answers[0]})")
    return rows


def share_of(rows: list[Row], mode: str) -> float:
    return next(row.accuracy or 0.0 for row in rows if row.task.endswith(mode) and row.scorer == "contains")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="2 minutes, to try it")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts (default: all)")
    parser.add_argument("--folder", type=Path, help="where to work, leave everything, and go on (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        for name in options.only:
            {"facts": facts, "text": text}[name](folder / name, SMALL if options.small else 1)


if __name__ == "__main__":
    main()
