"""BABILong's samples: what follows from their facts, where these stand, how long they are, and always the same text."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep import DataError, load_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer, train_sentencepiece
from evaluation.babilong.background import Background, open_background, split_sentences
from evaluation.babilong.exercises import write_exercises
from evaluation.babilong.facts import Question, read_babi, without
from evaluation.babilong.generator import LEAST_TOKENS, Generator, Sample, shuffled
from evaluation.babilong.lengths import canonical, context_tokens, tokens_of
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import Places, Recipe
from evaluation.babilong.released import load_released, save_released
from evaluation.babilong.simulator import simulate
from evaluation.babilong.sources import Generated
from evaluation.babilong.tasks import TASKS
from evaluation.babilong.world import answer

WORDS = ("the", "of", "a", "river", "stone", "old", "said,", "went", "over", "under", "“quietly”", "morning;", "letter")
STORIES = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Mary journeyed to the office.
6 Where is Mary? \toffice\t5
1 John is in the park.
2 Is John in the park?\tyes\t1
"""


class Bytes:
    """A tokenizer of one token a byte: the same on every machine without a file."""

    kind, path, fingerprint = "bytes", Path("nowhere"), "bytes"
    bos_id, eos_id, vocab_size = 256, 257, 258

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def piece(self, id: int) -> str:
        return self.decode([id])


def books() -> Background:
    """Two small books, with paragraphs and characters of several bytes."""
    texts = []
    for number in range(2):
        rng = Keyed("book", number)
        sentences = [
            " ".join(rng.choice(WORDS) for _ in range(3 + rng.below(15))).capitalize() + "." for _ in range(400)
        ]
        texts.append("\n".join(sentences[:200]) + "\n\n" + " ".join(sentences[200:]))
    return Background("two books", 2, texts.__getitem__)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(
        [books().text(0), *(" ".join(q.facts) for q in islice(simulate("qa8", 0, "train"), 50))], 400, path
    )
    return load_tokenizer(path)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would show an earlier test's rows of a folder of the same name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestFacts:
    def test_a_sample_is_a_question_with_the_facts_before_it(self, tmp_path: Path) -> None:
        (tmp_path / "qa1_test.txt").write_text(STORIES)
        first, second, third = read_babi(tmp_path / "qa1_test.txt")
        assert first == Question(
            ("Mary moved to the bathroom.", "John went to the hallway."), "Where is Mary?", "bathroom", (0,)
        )
        assert second.facts[2:] == ("Daniel went back to the hallway.", "Mary journeyed to the office.")
        assert (second.answer, second.supporting) == ("office", (3,))
        assert third == Question(("John is in the park.",), "Is John in the park?", "yes", (0,))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("Mary went home.", r"qa1\.txt:9: 'Mary went home\.' has no number"),
            ("2 Where is Mary?\t\t1", r"qa1\.txt:9: the question 'Where is Mary\?' has the answer ''"),
            ("2 Where is Mary?\toffice\t7", r"qa1\.txt:9: refers to line 7 of its story"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "qa1.txt"
        path.write_text(STORIES + line + "\n")
        with pytest.raises(DataError, match=message):
            read_babi(path)

    def test_missing_files_say_where_to_get_them(self, tmp_path: Path) -> None:
        source = Generated(Generator(None, Bytes()), str(tmp_path))
        with pytest.raises(DataError, match=r"has no qa1_test\.txt or qa1_valid\.txt; bAbI v1\.2 .* is at https://"):
            source.check("qa1", "0k")
        with pytest.raises(DataError, match="is no folder; bAbI"):
            Generated(Generator(None, Bytes()), str(tmp_path / "no")).check("qa1", "0k")

    def test_questions_of_both_files_are_in_neither_part(self, tmp_path: Path) -> None:
        own = "1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t1\n"
        other = "1 Mary moved to the garden.\n2 Where is Mary?\tgarden\t1\n"
        (tmp_path / "qa1_single-supporting-fact_train.txt").write_text(own + STORIES)
        (tmp_path / "qa1_single-supporting-fact_test.txt").write_text(other + STORIES)
        test = Generated(Generator(None, Bytes(), part="test"), str(tmp_path))
        train = Generated(Generator(None, Bytes(), part="train"), str(tmp_path))
        assert [q.answer for q in test.questions("qa1")] == ["garden"]
        assert [q.answer for q in train.questions("qa1")] == ["bathroom"]
        assert test.describe()["shared_with_other_files"] == {"qa1": 3}
        assert without(test.questions("qa1"), train.questions("qa1"))[1] == 0


class TestWorld:
    @pytest.mark.parametrize("task", TASKS)
    def test_simulated_questions_follow_from_their_facts(self, task: str) -> None:
        questions = list(islice(simulate(task, 3, "train"), 200))
        assert all(answer(q.facts, q.question) == q.answer for q in questions)
        labels = {label for q in questions for label in q.answer.split(",")}
        assert labels <= set(TASKS[task].labels)
        assert len(labels) > len(TASKS[task].labels) / 2
        assert max(Counter(q.answer for q in questions).values()) < 0.75 * len(questions)
        assert [q.facts for q in questions] == [q.facts for q in islice(simulate(task, 3, "train"), 200)]
        assert questions != list(islice(simulate(task, 4, "train"), 200))

    @pytest.mark.parametrize("task", TASKS)
    def test_simulated_parts_share_nothing(self, task: str) -> None:
        parts = [list(islice(simulate(task, 0, part), 300)) for part in ("train", "test")]
        assert without(*parts)[1] == 0

    def test_nothing_is_made_up(self) -> None:
        assert answer(["Mary went to the garden."], "Where is John?") is None
        assert answer(["Mary is not in the garden."], "Is Mary in the office?") is None
        assert answer(["Bill is either in the park or the school."], "Is Bill in the park?") == "maybe"
        with pytest.raises(ValueError, match="not a sentence of this world"):
            answer(["It rained."], "Where is John?")

    @pytest.mark.parametrize("task", TASKS)
    def test_the_world_answers_babi(self, task: str) -> None:
        """Every question of the real files, but for one in five hundred of qa5, whose second gift is not counted."""
        folder = os.environ.get("MEMTRAIN_DATA")
        if not folder:
            pytest.skip("MEMTRAIN_DATA is not set: no bAbI files")
        questions = read_babi(Path(folder) / "babi" / f"{task}_valid.txt")
        wrong = sum(answer(q.facts, q.question) != q.answer for q in questions)
        assert wrong <= (0.002 * len(questions) if task == "qa5" else 0)


def positions(sample: Sample) -> list[int]:
    """Where the facts stand, found anew."""
    found, start = [], 0
    for fact in sample.facts or ():
        found.append(sample.context.index(fact, start))
        start = found[-1] + len(fact)
    return found


class TestGenerator:
    @settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
    @given(
        task=st.sampled_from(list(TASKS)),
        length=st.sampled_from(["0k", "128", "512", "1k"]),
        seed=st.integers(0, 1000),
        varied=st.booleans(),
    )
    @example(task="qa1", length="128", seed=21, varied=False)  # facts that are a token longer together than alone
    def test_invariants(self, sentencepiece: Tokenizer, task: str, length: str, seed: int, varied: bool) -> None:
        """Facts in order, each whole; length within the budget; the question answerable from what the text says."""
        generator = Generator(books(), sentencepiece, seed)
        least = 64 if varied and tokens_of(length) else None
        for sample in generator.samples(task, length, simulate(task, seed, "test"), 3, least):
            assert sample.fact_places is not None
            assert sample.facts is not None
            assert positions(sample) == list(sample.fact_places)
            assert all(sample.context.startswith(f, p) for f, p in zip(sample.facts, sample.fact_places, strict=True))
            told = [sample.context[p : p + len(f)] for f, p in zip(sample.facts, positions(sample), strict=True)]
            assert answer(told, sample.question) == sample.answer
            if tokens_of(length):
                tokens = len(sentencepiece.encode(sample.context))
                assert tokens == sample.tokens
                assert tokens <= context_tokens(tokens_of(length))
                assert least or tokens >= context_tokens(tokens_of(length)) - 3
            else:
                assert sample.context == " ".join(sample.facts)

    def test_background_is_in_its_order_and_only_its_last_sentence_is_cut(self) -> None:
        book = books()
        question = next(simulate("qa1", 0, "test"))
        sample = Generator(book, Bytes(), 7).compose("qa1", "2k", question, 0)
        rest = sample.context
        for fact in question.facts:
            rest = rest.replace(fact, "|", 1)
        sentences = [s for part in rest.split("|") for s in split_sentences(part)]
        whole = [
            " ".join(split) for split in map(str.split, split_sentences(book.text(0)) + split_sentences(book.text(1)))
        ]
        long = [sentence for sentence in whole if len(sentence) >= LEAST_TOKENS]
        first = long.index(sentences[0])
        assert sentences[:-1] == long[first : first + len(sentences) - 1]
        assert long[first + len(sentences) - 1].startswith(sentences[-1])

    def test_facts_stand_anywhere(self) -> None:
        """Each of ten equal parts of the text has its share of the facts."""
        generator, counts = Generator(books(), Bytes(), 1), Counter[int]()
        for sample in generator.samples("qa1", "4k", simulate("qa1", 1, "test"), 200):
            counts.update(int(10 * place / len(sample.context)) for place in sample.fact_places or ())
        assert all(0.06 < counts[part] / counts.total() < 0.15 for part in range(10)), counts

    def test_the_same_text_on_every_machine(self) -> None:
        """A digest that was written down: of facts of our own, of files in their order, of places and cuts."""
        generator = Generator(books(), Bytes(), 5)
        found = [s for task in TASKS for s in generator.samples(task, "1k", simulate(task, 5, "test"), 2)]
        questions = [Question((f"Mary went to the {i}.",), "Where is Mary?", str(i)) for i in range(20)]
        found += generator.samples("qa1", "512", shuffled(questions, "qa1", 5), 5)
        text = json.dumps([[s.context, s.question, s.answer] for s in found])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == "449186179a78a7c0"

    def test_a_sample_depends_on_no_other(self) -> None:
        generator = Generator(books(), Bytes(), 2)
        many = list(generator.samples("qa2", "1k", simulate("qa2", 2, "test"), 6))
        assert list(generator.samples("qa2", "1k", simulate("qa2", 2, "test"), 3)) == many[:3]
        longer = list(generator.samples("qa2", "4k", simulate("qa2", 2, "test"), 3))
        assert [s.facts for s in longer] == [s.facts for s in islice(simulate("qa2", 2, "test"), 3)]

    def test_training_and_test_text_differ(self) -> None:
        question = next(simulate("qa1", 0, "test"))
        contexts = {
            Generator(books(), Bytes(), 0, part).compose("qa1", "1k", question, 0).context for part in ("train", "test")
        }
        assert len(contexts) == 2

    def test_facts_that_fit_nowhere_end_the_search(self) -> None:
        assert list(Generator(books(), Bytes()).samples("qa1", "20", simulate("qa1", 0, "test"), 3)) == []

    def test_background_without_sentences_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("One.")
        generator = Generator(open_background([str(tmp_path)]), Bytes())
        with pytest.raises(
            DataError, match=r"--background: 1 files of .* has no three consecutive sentences; books of"
        ):
            list(generator.samples("qa1", "1k", simulate("qa1", 0, "test"), 1))
        with pytest.raises(
            DataError, match=r"none is neither a text file nor a folder of \*\.txt files; books of Project"
        ):
            open_background([str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("name", "tokens"), [("0k", 0), ("4k", 4000), ("1M", 1_000_000), ("512", 512), ("128K", 128_000)]
)
def test_lengths(name: str, tokens: int) -> None:
    assert tokens_of(name) == tokens
    assert tokens_of(canonical(name)) == tokens
    assert canonical("1000k") == "1M"
    assert (context_tokens(4000), context_tokens(1000), context_tokens(100)) == (3700, 700, 70)


def test_length_that_is_none() -> None:
    with pytest.raises(DataError, match="--lengths: '4kk' is no length; write 0k"):
        tokens_of("4kk")


class TestReleased:
    def samples(self) -> list[Sample]:
        return list(Generator(books(), Bytes()).samples("qa3", "4k", simulate("qa3", 0, "test"), 4))

    def test_written_and_read_again(self, tmp_path: Path) -> None:
        samples = self.samples()
        path = save_released(samples, tmp_path)
        assert set(json.loads(path.read_text())[0]) == {"input", "question", "target"}
        read = load_released(str(tmp_path), "qa3", "4k")
        key = lambda s: (s.task, s.length, s.context, s.question, s.answer)  # noqa: E731
        assert list(map(key, read)) == list(map(key, samples))
        path.rename(tmp_path / "qa3_4k.json")
        assert load_released(str(tmp_path), "qa3", "4k") == read
        columns = {
            name: [row[name] for row in json.loads((tmp_path / "qa3_4k.json").read_text())]
            for name in ("input", "question", "target")
        }
        (tmp_path / "qa3_4k.json").write_text(json.dumps(columns))
        assert load_released(str(tmp_path), "qa3", "4k") == read

    def test_data_set_by_name(self, tmp_path: Path, own_cache: None) -> None:
        """`datasets` opens a local folder as it opens the hub: a subset a length, a split a task."""
        samples = self.samples()
        rows = [{"input": s.context, "question": s.question, "target": s.answer} for s in samples]
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "qa3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        card = {"configs": [{"config_name": "4k", "data_files": [{"split": "qa3", "path": "data/qa3.jsonl"}]}]}
        (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
        read = load_released(f"hf:{tmp_path}", "qa3", "4k")
        assert [s.context for s in read] == [s.context for s in samples]

    def test_bad_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no qa1/4k\.json; https://huggingface\.co"):
            load_released(str(tmp_path), "qa1", "4k")
        (tmp_path / "qa1_4k.json").write_text('[{"input": "a", "question": "b", "answer": "c"}]')
        with pytest.raises(DataError, match=r"qa1_4k\.json:1: has no text 'target'"):
            load_released(str(tmp_path), "qa1", "4k")
        (tmp_path / "qa1_4k.json").write_text("[")
        with pytest.raises(DataError, match=r"qa1_4k\.json: cannot be read as JSON"):
            load_released(str(tmp_path), "qa1", "4k")


def test_stories_of_a_data_set_by_name(tmp_path: Path, own_cache: None) -> None:
    """The layout of facebook/babi_qa: a row a story."""
    story = {
        "id": ["1", "2", "3"],
        "text": ["Mary moved to the bathroom.", "John went to the hallway.", "Where is Mary?"],
        "type": [0, 0, 1],
        "supporting_ids": [[], [], ["1"]],
        "answer": ["", "", "bathroom"],
    }
    (tmp_path / "test.jsonl").write_text(json.dumps({"story": story}) + "\n")
    card = {"configs": [{"config_name": "en-10k-qa1", "data_files": [{"split": "test", "path": "test.jsonl"}]}]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    source = Generated(Generator(None, Bytes()), f"hf:{tmp_path}")
    assert list(source.questions("qa1")) == [
        Question(("Mary moved to the bathroom.", "John went to the hallway."), "Where is Mary?", "bathroom", (0,))
    ]


def test_books_of_a_data_set_by_name(tmp_path: Path, own_cache: None) -> None:
    rows = [json.dumps({"text": books().text(number)}) for number in range(2)]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    named, files = open_background([f"hf:{tmp_path}"]), books()
    assert [named.text(number) for number in range(2)] == [files.text(number) for number in range(2)]
    with pytest.raises(DataError, match=r"--background: data set .* cannot be opened"):
        open_background([f"hf:{tmp_path}:train"])


def test_exercises_are_longer_from_length_to_length(tmp_path: Path, sentencepiece: Tokenizer) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(books().text(number))
    places = Places(sentencepiece.path, None, (str(tmp_path),))
    recipe = Recipe(("qa1", "qa6"), {"single": 1}, simulated=1)
    written = write_exercises(places, recipe, tmp_path, ["0k", "1k", "2k"], 30)
    assert written == {f"{length}/{task}.jsonl": 30 for task in ("qa1", "qa6") for length in ("0k", "1k", "2k")}
    rows = {name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in written}
    sizes = [len(sentencepiece.encode(row["context"])) for row in rows["2k/qa1.jsonl"]]
    assert max(sizes) <= context_tokens(2000) + 1
    assert context_tokens(1000) - 3 <= min(sizes) < max(sizes) - 300
    assert rows["1k/qa1.jsonl"][0]["question"] != rows["0k/qa1.jsonl"][0]["question"] or (
        rows["1k/qa1.jsonl"][0]["context"] != rows["0k/qa1.jsonl"][0]["context"]
    )
    about = json.loads((tmp_path / "babilong.json").read_text())
    assert (about["facts"], about["exercises"]) == ("simulator", written)


def test_documentation_stands_in_for_books() -> None:
    texts = open_background([])
    assert texts.name.startswith("docstrings of Python 3.")
    sample = next(Generator(texts, Bytes()).samples("qa1", "1k", simulate("qa1", 0, "test"), 1))
    assert 690 <= (sample.tokens or 0) <= 700
