"""experiments/babilong.py as a user runs it: two kinds, a few steps, and the same command again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from evaluation.babilong.dense import TASKS
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import story_of
from experiments.babilong import parse_arguments
from tests.unit.evaluation.babilong_material import as_babi

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--steps", "4", "--every", "4", "--batch", "2", "--seeds", "0", "--lengths", "0k:3", "1k:2")
KINDS = ("--kinds", "delta+sparse:16:1e-3", "llama-window:16:1e-3")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """bAbI's files as the simulator tells them, and Python's manual as five books."""
    folder = tmp_path_factory.mktemp("material")
    babi, books = folder / "babi", folder / "books"
    babi.mkdir()
    books.mkdir()
    for task in TASKS:
        for split, seed in (("train", 1), ("test", 2)):
            stories = [story_of(tell_story(task, Keyed(task, seed, number))) for number in range(250)]
            (babi / f"{task}_{split}.txt").write_text(as_babi(stories))
    pages = sorted(topics.values())
    for book in range(5):
        (books / f"{book}.txt").write_text("\n\n".join(pages[book::5]))
    return ["--babi", str(babi), "--background", str(books)]


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / "babilong.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


def lines(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_trains_measures_and_does_nothing_twice(material: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = (*material, "--work", str(work), *FEW)
    first = ask(*command, "--kinds", KINDS[1])
    assert first.returncode == 0, first.stderr
    (delta,) = {line["entry"] for line in lines(work) if "length" in line}
    both = ask(*command, *KINDS)
    assert both.returncode == 0, both.stderr
    found = lines(work)
    results = [(line["entry"], line["length"], line["samples"]) for line in found if "length" in line]
    llama = "llama-window-t16-lr0.001-s0"
    names = [str(delta), llama, f"{llama}+rag"]  # a Llama also reads what retrieval finds
    assert results == [(name, length, count) for name in names for length, count in (("0k", 3), ("1k", 2))]
    assert sum(line.get("step") == 4 for line in found) == 2  # the finished model did not train again
    assert sorted(path.stem for path in work.glob("*.safetensors")) == sorted(names[:2])

    other = ask(*command, *KINDS, "--batch", "3")
    assert other.returncode == 2
    assert "--batch: is 3, but" in other.stderr
    assert lines(work) == found


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--kinds", "lm3"), "'lm3' names no kind"),
        (("--side-by-side", "4000"), "--side-by-side: is 4000"),
        (("--babi", "nowhere"), "--babi: nowhere has no qa1_train.txt"),
        (("--background", "nowhere"), "--background: nowhere has 0 *.txt files"),
        (("--lengths", "0k:many"), "--lengths: '0k:many'"),
    ],
)
def test_refuses_before_anything_is_written(
    material: list[str],
    tmp_path: Path,
    options: tuple[str, ...],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["babilong.py", *material, "--work", str(tmp_path / "work"), *options])
    with pytest.raises(SystemExit) as ended:
        parse_arguments()
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
