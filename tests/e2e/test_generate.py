"""Text from a checkpoint, by the command people type."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e.commands import (
    GENERATE,
    plain,
    run,
    run_warm,
    tree,
)
from tests.e2e.place import SEGMENT, Place, assert_refused

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
