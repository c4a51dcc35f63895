"""MMLU: its files, its groups, and the choice by likelihood against a loop that reads every choice by itself."""

import csv
import os
from pathlib import Path

import pytest
import torch

from data_prep import DataError
from evaluation.mmlu import (
    CATEGORY,
    LETTERS,
    SUBJECTS,
    Mmlu,
    averages,
    choose,
    evaluate_subject,
    level_of,
    read_problems,
)
from evaluation.reader import Reader
from evaluation.results import share_row
from model import MemoryConfig, ModelConfig, build_model
from tests.reference.small import one_thread as one_thread
from tests.unit.evaluation.test_babilong import Bytes

ROWS = [[f"What is {i} + 1?\n", str(i), str(i + 1), "none, or more", str(2 * i + 7), "B"] for i in range(9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("dev", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for subject in ("abstract_algebra", "high_school_physics"):
            with (tmp_path / "data" / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(ROWS[:5] if split == "dev" else ROWS)
    return tmp_path


def test_57_subjects_in_4_categories_and_4_levels() -> None:
    groups = [list(CATEGORY.values()).count(name) for name in ("STEM", "Humanities", "Social Sciences", "Others")]
    assert (len(SUBJECTS), groups) == (57, [18, 13, 12, 14])
    levels = [level_of(subject) for subject in SUBJECTS]
    assert [levels.count(x) for x in ("High School", "College", "Professional", "General")] == [14, 6, 4, 33]
    assert level_of("elementary_mathematics") == "General"


def test_categories_are_those_of_the_authors() -> None:
    root = os.environ.get("MEMTRAIN_DATA")
    if not root:
        pytest.skip("MEMTRAIN_DATA is not set: no MMLU files")
    import json

    theirs = json.loads((Path(root) / "mmlu" / "subject_categories.json").read_text())
    assert {s: c["category"].split(" (")[0].lower().replace("other", "others") for s, c in theirs.items()} == {
        s: c.lower() for s, c in CATEGORY.items()
    }


def test_prompt(folder: Path) -> None:
    mmlu = Mmlu(folder, shots=1)
    assert mmlu.split == "val"
    prompt = next(mmlu.prompts("high_school_physics", mmlu.problems("high_school_physics")[3:]))
    assert prompt == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "What is 0 + 1?\nA. 0\nB. 1\nC. none, or more\nD. 7\nAnswer: B\n\n"
        "What is 3 + 1?\nA. 3\nB. 4\nC. none, or more\nD. 13\nAnswer:"
    )


@pytest.mark.parametrize("shots", [0, 2])
def test_choice_is_that_of_a_loop_over_every_choice(folder: Path, shots: int) -> None:
    """One prompt at a time, each letter read behind it, log-probabilities from the whole call's logits."""
    config = ModelConfig(
        vocab_size=258, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, ffn_size=24, segment_length=32,
        init_std=0.4, memory=MemoryConfig(kind="lm2", slots=3, heads=2),
    )  # fmt: skip
    net, tokenizer, mmlu = build_model(config, seed=2).eval(), Bytes(), Mmlu(folder, shots)
    problems = mmlu.problems("abstract_algebra")
    prompts = list(mmlu.prompts("abstract_algebra", problems))
    expected = []
    for prompt in prompts:
        scores = []
        for letter in LETTERS:
            context, ids = [256, *tokenizer.encode(prompt)], [256, *tokenizer.encode(f"{prompt} {letter}")]
            with torch.no_grad():
                log_p = net(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(log_p[i - 1, ids[i]]) for i in range(len(context), len(ids))))
        expected.append(max(range(4), key=scores.__getitem__))
    assert choose(Reader(net, batch_size=4), tokenizer, prompts) == expected
    right = sum(choice == 1 for choice in expected)
    row = evaluate_subject(Reader(net), tokenizer, mmlu, "abstract_algebra", None)
    assert (row.samples, row.accuracy) == (9, right / 9)
    assert (row.category, row.level, row.shots, row.scorer) == ("STEM", "General", shots, "likelihood")


def test_averages_are_over_questions() -> None:
    rows = [
        share_row(3, 4, task="mmlu/virology", category="Others", level="General", scorer="likelihood"),
        share_row(0, 12, task="mmlu/college_physics", category="STEM", level="College", scorer="likelihood"),
    ]
    found = {row.task: (row.accuracy, row.samples) for row in averages(rows)}
    assert found == {
        "STEM": (0, 12),
        "Others": (0.75, 4),
        "College": (0, 12),
        "General": (0.75, 4),
        "Average": (3 / 16, 16),
    }


def test_bad_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder test/ or val/; MMLU's files .* are at https://"):
        Mmlu(tmp_path / "data" / "dev")
    with pytest.raises(DataError, match=r"virology_val\.csv is missing; MMLU's files"):
        Mmlu(folder).problems("virology")
    with pytest.raises(DataError, match=r"--shots: 6, but .*abstract_algebra_dev\.csv has 5 questions"):
        Mmlu(folder, shots=6).prompts("abstract_algebra", [])
    bad = tmp_path / "bad.csv"
    bad.write_text("question,1,2,3,4,B\nquestion,1,2,3,E\n")
    with pytest.raises(DataError, match=r"bad\.csv: row 2 has 5 columns and ends in \['E'\]"):
        read_problems(bad)
