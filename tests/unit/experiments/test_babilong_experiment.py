"""The material of experiments/babilong.py, and how its models are measured."""

import random

import numpy as np
import pytest
import torch

from data_prep import load_tokenizer
from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.dense import TASKS
from evaluation.babilong.material import Material
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import story_of
from evaluation.babilong.world import OPPOSITE
from experiments.babilong_parts.kinds import KINDS, SETTINGS, Shape, model_config
from experiments.babilong_parts.measuring import Asked, right_answers
from experiments.babilong_parts.race import by_errors
from experiments.babilong_parts.rows import BLOCK, FEW, Stage, Writer, _next, _story, make_block
from experiments.babilong_parts.training import Learner, Recipe, Rows, load_weights, save_weights
from model import build_model
from model.cost import count_parameters

SHAPE = Shape(320, 32, 2, heads=2, memory_heads=2, slots=8, row_length=128)


@pytest.fixture(scope="module")
def material() -> Material:
    return Material({task: [story_of(tell_story(task, Keyed(task, n))) for n in range(8)] for task in TASKS})


@pytest.fixture(scope="module")
def writer(tmp_path_factory, material) -> Writer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    rng = random.Random(0)
    stories = [_story(task, material, rng, 0.5) for task in TASKS for _ in range(60)]
    train_sentencepiece(
        [f"{' '.join(q.facts)} {q.question} {q.answer}" for s in stories for q in s.questions], 320, path
    )
    return Writer(load_tokenizer(path), None)


def test_rows_are_a_function_of_their_key_and_learn_answers_alone(material, writer):
    stage = Stage("all", tuple((task, 1.0) for task in TASKS))
    rows = make_block(writer, material, stage, (3, 1), 2, 128)
    again = make_block(writer, material, stage, (3, 1), 2, 128)
    other = make_block(writer, material, stage, (3, 2), 2, 128)
    assert len(rows) == BLOCK
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(rows, again, strict=True))
    assert not all(np.array_equal(a.tokens, b.tokens) for a, b in zip(rows, other, strict=True))
    eos = writer.tokenizer.eos_id
    for row in rows:
        # every eos ends an answer, and an answer that is whole ends with one
        assert row.answers[row.tokens == eos].all()
        inner = row.answers[:, :-1] & ~row.answers[:, 1:]
        assert (row.tokens[:, :-1][inner] == eos).all()
    assert 0.02 < np.mean([row.answers.mean() for row in rows]) < 0.4


def test_a_story_that_does_not_fit_waits_for_the_next_row():
    made = [([1] * size, [False] * size) for size in (700, 90, 300, 50)]
    stories = iter(made)
    waiting: list[tuple[list[int], list[bool]]] = []
    assert _next(waiting, stories, 1000) is made[0]
    assert _next(waiting, stories, 300) is made[1]
    assert _next(waiting, stories, 210) is made[3]  # 300 tokens do not fit
    assert waiting == [made[2]]
    assert _next(waiting, stories, 1000) is made[2]  # the next row begins with it
    assert _next(waiting, iter(made), FEW - 1) is made[0]  # the last few tokens take a story's beginning


def test_kinds_have_equal_parameters():
    counts = {kind: count_parameters(model_config(kind, SHAPE, SETTINGS[kind][0])).total for kind in KINDS}
    assert max(counts.values()) <= 1.05 * min(counts.values()), counts


@pytest.mark.parametrize("kind", ["delta", "lm2-time"])
def test_reading_in_pieces_finds_the_same_answers(kind):
    torch.manual_seed(0)
    net = build_model(model_config(kind, SHAPE, 16), seed=0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("memory.out.weight"):
                parameter.normal_(std=0.3)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 320, length).astype(np.int32) for length in (20, 75, 130)]
    samples = []
    for prompt in prompts:  # the first answers are the model's own, so that some are right
        guess = int(net(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].argmax())
        samples += [Asked(prompt, np.array([guess])), Asked(prompt, np.array([(guess + 1) % 320]))]
    whole = right_answers(net, samples, torch.device("cpu"), piece=4096)
    assert whole == [True, False] * 3
    assert right_answers(net, samples, torch.device("cpu"), batch=2, piece=32) == whole


def test_a_learner_goes_on_where_it_was_saved(tmp_path, material, writer):
    stage = Stage("all", tuple((task, 1.0) for task in TASKS))
    rows = make_block(writer, material, stage, (0, 0), 2, 128)

    def learner() -> Learner:
        net = build_model(model_config("delta", SHAPE, 16), seed=0)
        return Learner(net, Recipe(1e-3, 20, warmup=2), (2, 128), torch.device("cpu"))

    whole, first, second = learner(), learner(), learner()
    for row in rows[:6]:
        whole.train(row)
    for row in rows[:3]:
        first.train(row)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    for row in rows[3:6]:
        second.train(row)
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), second.net.parameters(), strict=True))
    assert whole.step == second.step == 6


def test_a_stage_of_short_stories_has_no_long_one(material, writer):
    stage = Stage("short", (("qa1", 1.0),), facts=3)
    full_stop = writer.tokenizer.encode("a.")[-1]
    for row in make_block(writer, material, stage, (0, 0), 2, 128)[:8]:
        for tokens, documents in zip(row.tokens[:, :-1], row.documents, strict=True):
            facts = [int((tokens[documents == number] == full_stop).sum()) for number in np.unique(documents)]
            assert max(facts) <= 3
            assert np.mean(facts[:-1]) >= 2  # the last story of a row is cut by its end


def test_tokens_go_to_the_tasks_in_proportion_to_their_errors(material, writer):
    everything = Stage("all", tuple((task, 1.0) for task in TASKS))
    right = {"qa1": 1.0, "qa2": 0.8, "qa3": 0.2, "qa4": 0.5, "qa5": 0.5}
    stage = by_errors(everything, right)
    shares = dict(stage.tasks)
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.03)
    assert shares["qa3"] == pytest.approx(4 * shares["qa2"], rel=0.1)
    assert 0 < shares["qa1"] < shares["qa2"]  # what is answered perfectly is not forgotten
    assert stage.name != everything.name  # other rows
    more, less = (
        of_qa4(writer, make_block(writer, material, made, (0, 0), 2, 512))
        for made in (stage, by_errors(everything, right | {"qa4": 1.0}))
    )
    assert more > 1.5 * less > 0


def of_qa4(writer: Writer, rows: list[Rows]) -> float:
    """Share of the tokens that stand in stories of qa4, which alone name directions."""
    found = total = 0
    for row in rows:
        for tokens, documents in zip(row.tokens[:, :-1], row.documents, strict=True):
            for number in np.unique(documents):
                story = tokens[documents == number].tolist()
                total += len(story)
                found += len(story) * any(name in writer.tokenizer.decode(story) for name in OPPOSITE)
    return found / total


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_kept_are_those_that_were_trained(tmp_path, kind):
    trained, fresh = (build_model(model_config(kind, SHAPE, SETTINGS[kind][0]), seed=seed) for seed in (1, 2))
    save_weights(trained, tmp_path / "kept.safetensors")
    load_weights(fresh, tmp_path / "kept.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))
