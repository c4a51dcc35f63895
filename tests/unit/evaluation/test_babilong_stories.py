"""Training material of whole stories: what its answers follow from, what is learned of it, what is kept out of it."""

import hashlib
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import DataError
from data_prep.config import SourceConfig
from data_prep.preparation.tokenize import tokenize
from data_prep.sources.documents import DocumentReader
from data_prep.sources.problems import Problems
from data_prep.tokenizers.tokenizer import Tokenizer
from evaluation.babilong.background import Background
from evaluation.babilong.cell import Asker
from evaluation.babilong.dense import asked_densely, simulated_facts
from evaluation.babilong.encoding import SentenceEncoder, Turn
from evaluation.babilong.exercises import as_record, write_exercises
from evaluation.babilong.facts import Question, read_babi
from evaluation.babilong.generator import Sample
from evaluation.babilong.material import Material, load_material
from evaluation.babilong.noise import Noise
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import ExerciseMaker, Form, Places, Recipe
from evaluation.babilong.simulator import HELD_OUT, tell_story
from evaluation.babilong.stories import Asked, Story, permuted, single, stories_of, story_of
from evaluation.babilong.world import World, answer
from launchers import babilong
from tests.unit.evaluation.babilong_material import TASKS, told
from training.config import load_config

ROOT = Path(__file__).resolve().parents[3]


def dense(task: str, seed: int) -> Story:
    rng = random.Random(f"{task}/{seed}")
    return asked_densely(simulated_facts(task, rng), task, rng)


def questions(turns: list[Turn]) -> list[Question]:
    facts: tuple[str, ...] = ()
    found = []
    for turn in turns:
        facts += told(turn.sentences)
        found.append(Question(facts, turn.question, turn.answer))
    return found


class TestStories:
    def test_of_a_file_have_facts_and_questions_in_their_order(self, tmp_path: Path) -> None:
        text = (
            "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n3 John went to the hallway.\n"
            "4 Where is John? \thallway\t3\n1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t1\n"
        )
        (tmp_path / "qa1_train.txt").write_text(text)
        first, second = stories_of(read_babi(tmp_path / "qa1_train.txt"))
        mary, john = Asked("Where is Mary?", "bathroom"), Asked("Where is John?", "hallway")
        assert first.items == ("Mary moved to the bathroom.", mary, "John went to the hallway.", john)
        assert second.items == first.items[:2]
        assert first.questions[1].facts == first.facts
        assert first.without({first.questions[0].identity}).items == (*first.facts, john)
        assert first.without({first.questions[1].identity}).items == first.items[:2]
        assert single(second, Keyed(0)) == second

    @pytest.mark.parametrize("task", [*TASKS, "qa7", "qa10"])
    def test_permuted_have_the_answers_that_follow(self, task: str) -> None:
        changed = 0
        for number in range(50):
            story = story_of(tell_story(task, Keyed("told", number)))
            other = permuted(story, task, random.Random(number))
            assert all(answer(q.facts, q.question) == q.answer for q in other.questions)
            assert len(other.items) == len(story.items)
            changed += other != story
            # word by word one to one
            words = [w for item in story.items for w in " ".join([item] if isinstance(item, str) else item).split()]
            others = [w for item in other.items for w in " ".join([item] if isinstance(item, str) else item).split()]
            assert len(set(zip(words, others, strict=True))) == len(set(words)) == len(set(others))
        assert changed > 45


class TestDense:
    @pytest.mark.parametrize(("task", "kinds"), [("qa1", 3), ("qa2", 3), ("qa3", 3), ("qa4", 2), ("qa5", 8)])
    def test_answers_follow_and_kinds_are_mixed(self, task: str, kinds: int) -> None:
        facts = asked = 0
        found = Counter[str]()
        for number in range(150):
            story = dense(task, number)
            for question in story.questions:
                assert answer(question.facts, question.question) == question.answer
                found[_kind(question.question)] += 1
            facts, asked = facts + len(story.facts), asked + len(story.questions)
        assert len(found) == kinds
        assert min(found.values()) > max(found.values()) / 20
        assert 0.3 < asked / facts < 0.6

    def test_of_qa4_ask_once(self) -> None:
        """Of the eight questions that its two facts answer, each answer gives others away."""
        stories = [dense("qa4", number) for number in range(60)]
        assert all(len(story.questions) == 1 and isinstance(story.items[-1], Asked) for story in stories)

    def test_objects_asked_for_were_carried_elsewhere_half_of_the_time(self) -> None:
        elsewhere = there = 0
        for number in range(300):
            for question in dense("qa2", number).questions:
                world = World()
                for fact in question.facts:
                    world.tell(fact)
                moved = [thing for thing, rooms in world.been.items() if len(rooms) > 1]
                if question.question.startswith("Where is the") and moved and len(moved) < len(world.been):
                    there += 1
                    elsewhere += question.question.split()[-1][:-1] in moved
        assert there > 250
        assert elsewhere / there > 0.5

    @settings(deadline=None, max_examples=20)
    @given(number=st.integers(0, 2**32), task=st.sampled_from(TASKS))
    def test_what_is_unwanted_is_not_asked(self, number: int, task: str) -> None:
        facts = dense(task, number).facts
        before = asked_densely(facts, task, random.Random(number))
        unwanted = {question.identity for question in before.questions}
        again = asked_densely(facts, task, random.Random(number), unwanted)
        assert again.facts == before.facts == facts
        assert not unwanted & {question.identity for question in again.questions}

    def test_are_those_that_were_measured(self) -> None:
        """The rows of a measured run are made again only as long as the same seed gives the same stories."""
        stories = [dense(task, number).items for task in TASKS for number in range(40)]
        assert hashlib.sha256(repr(stories).encode()).hexdigest()[:12] == "c3847e30a4ba"


def _kind(question: str) -> str:
    words = question.rstrip("?").split()
    if words[1:3] == ["is", "the"] and words[0] == "What":
        return "What is the … of"
    if words[:2] == ["What", "is"]:
        return "What is … of"
    if words[:2] == ["Who", "gave"]:
        return f"Who gave {len(words)}"
    return " ".join(words[:3] if words[2] == "the" else words[:2])


class TestExercises:
    @pytest.mark.parametrize("forms", [{"single": 1}, {"story": 1}, {"dense": 1}])
    def test_answers_follow_and_none_is_in_the_files_to_evaluate(
        self, forms: dict, material: Material, background: Background, tokenizer: Tokenizer, places: Places
    ) -> None:
        recipe = Recipe(TASKS, forms, noise={0: 1, 300: 1})
        maker = ExerciseMaker(recipe, material, SentenceEncoder(tokenizer), background)
        kept = {q.identity for task in TASKS for q in read_babi(Path(str(places.babi)) / f"{task}_valid.txt")}
        with_noise = 0
        for number in range(200):
            turns = maker.turns(TASKS[number % 5], Keyed(number))
            found = questions(turns)
            assert len(found) == 1 or forms != {"single": 1}
            assert all(answer(q.facts, q.question) == q.answer for q in found)
            assert not kept & {q.identity for q in found}
            with_noise += sum(len(turn.sentences) for turn in turns) > len(found[-1].facts)
        assert 60 < with_noise < 140

    @pytest.mark.parametrize("task", TASKS)
    def test_of_babi_itself_have_no_question_to_evaluate_with(self, task: str, tokenizer: Tokenizer) -> None:
        folder = os.environ.get("MEMTRAIN_DATA")
        if folder is None:
            pytest.skip("MEMTRAIN_DATA is not set: no bAbI files")
        kept = {q.identity for q in read_babi(Path(folder) / "babi" / f"{task}_valid.txt")}
        forms: dict[Form, float] = {"single": 1, "story": 1, "dense": 1}
        made = load_material(str(Path(folder) / "babi"), [task])
        maker = ExerciseMaker(Recipe((task,), forms), made, SentenceEncoder(tokenizer), None)
        found = [question for number in range(300) for question in questions(maker.turns(task, Keyed(number)))]
        assert not kept & {question.identity for question in found}
        # bAbI means the first of two things that were given
        assert sum(answer(q.facts, q.question) != q.answer for q in found) <= 0.004 * len(found)

    def test_files_without_permutation_give_no_question_of_the_others(
        self, material: Material, places: Places, tokenizer: Tokenizer
    ) -> None:
        assert material.left_out["qa1"] >= 12 * 5
        kept = {q.identity for q in read_babi(Path(str(places.babi)) / "qa1_valid.txt")}
        recipe = Recipe(("qa1",), {"story": 1}, simulated=0, permute=False)
        maker = ExerciseMaker(recipe, material, SentenceEncoder(tokenizer), None)
        made = [q.identity for number in range(200) for q in questions(maker.turns("qa1", Keyed(number)))]
        assert len(set(made)) > 100
        assert not kept & set(made)

    def test_files_whose_every_question_is_held_out_are_named(self, material: Material, tokenizer: Tokenizer) -> None:
        every = frozenset(q.identity for story in material.stories["qa1"] for q in story.questions)
        recipe = Recipe(("qa1",), {"story": 1}, simulated=0, permute=False)
        maker = ExerciseMaker(recipe, Material(material.stories, every), SentenceEncoder(tokenizer), None)
        with pytest.raises(DataError, match="--babi: the test and valid files of qa1 have all questions"):
            maker.turns("qa1", Keyed(0))

    def test_a_question_that_the_simulator_keeps_is_not_learned(self, tokenizer: Tokenizer) -> None:
        maker = ExerciseMaker(Recipe(TASKS, simulated=1), Material(), SentenceEncoder(tokenizer), None)
        made = [q for n in range(300) for q in questions(maker.turns(TASKS[n % 5], Keyed(n)))]
        assert len(made) > 1000
        assert all(question.identity % HELD_OUT for question in made)

    def test_tokens_are_those_of_data_prep_and_of_evaluation(
        self, material: Material, background: Background, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        recipe = Recipe(TASKS, {"single": 1, "story": 1, "dense": 1}, noise={0: 1, 300: 1})
        encoder = SentenceEncoder(tokenizer)
        maker = ExerciseMaker(recipe, material, encoder, background)
        made = [maker.turns(TASKS[number % 5], Keyed(number)) for number in range(100)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(as_record(turns)) + "\n" for turns in made))
        reader = DocumentReader(SourceConfig(kind="task", path=tmp_path / "a.jsonl"))
        prepared = list(tokenize(reader.read(Problems("fail")), tokenizer, "uint16", None))
        assert len(prepared) == len(made)
        alone = 0
        for turns, done in zip(made, prepared, strict=True):
            ids, answers = encoder.exercise(turns)
            assert ids.tolist() == done.tokens.tolist()
            learned = np.zeros(len(ids), np.uint8)
            for begin, end in answers:
                learned[begin:end] = 1
            assert done.loss_mask is not None
            assert learned.tolist() == done.loss_mask.tolist()
            if len(turns) == 1:
                alone += 1
                sample = Sample("qa1", "0k", " ".join(turns[0].sentences), turns[0].question, turns[0].answer)
                asked = Asker(tokenizer, "finetuned").ids(sample)
                assert ids.tolist() == [*asked, *tokenizer.encode(sample.answer), tokenizer.eos_id]
        assert alone > 20

    def test_noise_is_within_its_budget(self, background: Background, tokenizer: Tokenizer) -> None:
        encoder = SentenceEncoder(tokenizer)
        noise = Noise(background, encoder)
        for tokens in (0, 5, 50, 400, 9000):
            sentences = noise.sentences(tokens, Keyed(tokens))
            size = sum(len(encoder.after(" " + sentence)) for sentence in sentences)
            assert tokens - 3 * (tokens > 0) <= size <= tokens + 1  # the last one is cut, and encoded again

    def test_stories_are_whole_and_fit(self, tokenizer: Tokenizer, background: Background) -> None:
        encoder = SentenceEncoder(tokenizer)
        maker = ExerciseMaker(Recipe(TASKS, simulated=1), Material(), encoder, background)
        for least, most in ((0, 0), (0, 600)):
            made = [maker.turns_of_length("qa3", least, most, 600, Keyed(n)) for n in range(60)]
            sizes = [len(encoder.exercise(turns)[0]) for turns in made]
            assert 350 < max(sizes) <= 600
        unlimited = [maker.turns_of_length("qa3", 0, 0, 0, Keyed(n)) for n in range(60)]
        assert max(len(encoder.exercise(turns)[0]) for turns in unlimited) > 700
        with pytest.raises(DataError, match="no story of qa3 fits into 4 tokens"):
            maker.turns_of_length("qa3", 0, 4, 4, Keyed(0))

    @pytest.mark.parametrize("task", TASKS)
    def test_short_ones_are_the_beginnings_of_stories(
        self, task: str, material: Material, tokenizer: Tokenizer
    ) -> None:
        maker = ExerciseMaker(Recipe(TASKS), material, SentenceEncoder(tokenizer), None)
        counts = Counter[int]()
        for number in range(200):
            found = questions(maker.short_turns(task, Keyed(number)))
            assert all(answer(q.facts, q.question) == q.answer for q in found)
            counts[len(found[-1].facts)] += 1
        assert max(counts) == (2 if task == "qa4" else 5)
        assert task == "qa4" or min(counts[count] for count in (2, 3, 4, 5)) >= 10

    def test_number_of_processes_changes_nothing(self, places: Places, tmp_path: Path) -> None:
        recipe = Recipe(("qa2", "qa5"), {"dense": 1, "single": 1})
        for workers in (1, 2):
            lengths = ["short", "0k", "1k"]
            counts = write_exercises(places, recipe, tmp_path / str(workers), lengths, 260, workers=workers)
            assert counts == {f"{length}/{task}.jsonl": 260 for task in ("qa2", "qa5") for length in lengths}
        for name in [*counts, "babilong.json"]:
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def test_of_the_documented_command_are_those_of_the_configuration(
        self, places: Places, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        documented = re.search(r"--form dense .*--lengths \S+", (ROOT / "docs" / "evaluation.md").read_text())
        assert documented
        given = ["--part", "train", "--tokenizer", str(places.tokenizer), "--babi", str(places.babi), "--workers", "1"]
        given += ["--samples", "40", "--output", str(tmp_path), "--background", *(places.books or ())]
        assert babilong.main([*given, *documented[0].split()]) == 0
        data = load_config(ROOT / "configs" / "babilong.yaml").data
        assert data.prepare
        for source in data.prepare.sources:
            assert source.kind == "task"
            path = tmp_path.joinpath(*Path(str(source.path)).parts[-2:])
            reader = DocumentReader(SourceConfig(kind="task", path=path))
            sizes = [len(done.tokens) for done in tokenize(reader.read(Problems("fail")), tokenizer, "uint16", None)]
            assert len(sizes) == 40
            assert max(sizes) <= data.sequence_length
