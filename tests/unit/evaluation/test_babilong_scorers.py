"""Three rules on the same answers: where they agree, where the official one is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.babilong.generator import Sample
from evaluation.babilong.scorers import SCORERS, agreement, corrected, exact, official
from evaluation.babilong.tasks import TASKS
from evaluation.babilong.templates import FINETUNED_LAYOUT, PROMPTS, fill

RIGHT, WRONG = True, False


def verdicts(task: str, output: str, answer: str, question: str) -> tuple[bool, ...]:
    return tuple(scorer(output, answer, question, TASKS[task]) for scorer in SCORERS.values())


@pytest.mark.parametrize(
    ("task", "output", "answer", "question", "expected"),
    [
        ("qa1", "garden", "garden", "Where is Mary?", (RIGHT, RIGHT, RIGHT)),
        ("qa1", " Garden.\n", "garden", "Where is Mary?", (RIGHT, RIGHT, RIGHT)),
        (
            "qa1",
            "The most recent location of Mary is garden. The kitchen",
            "garden",
            "Where is Mary?",
            (RIGHT, WRONG, RIGHT),
        ),
        ("qa1", "\nAnswer: garden\nQuestion: Is the kitchen", "garden", "Where is Mary?", (WRONG, WRONG, RIGHT)),
        ("qa1", "garden Question: kitchen", "garden", "Where is Mary?", (WRONG, WRONG, RIGHT)),
        ("qa1", "garden or kitchen", "garden", "Where is Mary?", (WRONG, WRONG, WRONG)),
        ("qa1", "", "garden", "Where is Mary?", (WRONG, WRONG, WRONG)),
        (
            "qa3",
            "Before the kitchen it was in the office",
            "office",
            "Where was the milk before the kitchen?",
            (RIGHT, WRONG, RIGHT),
        ),
        # "one" is a part of "none": the official rule finds two labels
        ("qa7", "none", "none", "How many objects is Mary carrying?", (WRONG, RIGHT, RIGHT)),
        ("qa7", "one", "one", "How many objects is Mary carrying?", (RIGHT, RIGHT, RIGHT)),
        ("qa7", "none", "one", "How many objects is Mary carrying?", (WRONG, WRONG, WRONG)),
        ("qa8", "milk,apple", "apple,milk", "What is Mary carrying?", (RIGHT, WRONG, RIGHT)),
        ("qa8", "milk", "apple,milk", "What is Mary carrying?", (WRONG, WRONG, WRONG)),
        ("qa8", "nothing", "nothing", "What is Mary carrying?", (RIGHT, RIGHT, RIGHT)),
        # "no" is a part of "not" and of "know"
        ("qa6", "I do not know", "no", "Is Mary in the garden?", (RIGHT, WRONG, WRONG)),
        ("qa6", "yes, she is not elsewhere", "yes", "Is Mary in the garden?", (WRONG, WRONG, RIGHT)),
        ("qa10", "maybe", "maybe", "Is Bill in the park?", (RIGHT, RIGHT, RIGHT)),
    ],
)
def test_rules(task: str, output: str, answer: str, question: str, expected: tuple[bool, ...]) -> None:
    assert verdicts(task, output, answer, question) == expected


@given(
    output=st.text(max_size=60) | st.sampled_from(["none", "none at all", "None.", "one none", "the answer is none"])
)
def test_no_output_whatever_is_officially_none(output: str) -> None:
    """The fault of the released rule: for qa7's most frequent answer but one."""
    assert not official(output, "none", "How many objects is Mary carrying?", TASKS["qa7"])


@pytest.mark.parametrize("task", TASKS)
def test_the_bare_answer_is_exact_and_correct(task: str) -> None:
    for label in TASKS[task].labels:
        assert exact(label, label, "Where is she?", TASKS[task])
        assert corrected(label, label, "Where is she?", TASKS[task])
        assert official(label, label, "Where is she?", TASKS[task]) == (label != "none")


@given(
    task=st.sampled_from(list(TASKS)),
    said=st.lists(st.sampled_from(["garden", "kitchen", "yes", "no", "none", "one", "milk", "is", "."]), max_size=4),
    data=st.data(),
)
def test_what_is_exact_is_correct(task: str, said: list[str], data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(TASKS[task].labels))
    output = " ".join(said)
    if exact(output, answer, "Where is she?", TASKS[task]):
        assert corrected(output, answer, "Where is she?", TASKS[task])


def test_agreement_counts_every_answer() -> None:
    judged = [(RIGHT, RIGHT, RIGHT)] * 3 + [(WRONG, RIGHT, RIGHT)] * 5
    header, first, second = agreement(judged).splitlines()
    assert header.split() == ["answers", *SCORERS]
    assert first.split() == ["5", "wrong", "right", "right"]
    assert second.split() == ["3", "right", "right", "right"]


class TestTemplates:
    SAMPLE = Sample("qa7", "0k", "Mary took {question} the milk there.", "How many objects is Mary carrying?", "one")

    def test_layout_keeps_braces_of_the_text(self) -> None:
        text = fill(FINETUNED_LAYOUT, self.SAMPLE.context, self.SAMPLE.question)
        assert text == "Mary took {question} the milk there.\nHow many objects is Mary carrying?\n"
        assert fill("Q: {question} C: {context} A: ", "c", "q") == "Q: q C: c A: "

    @pytest.mark.parametrize("task", TASKS)
    def test_prompts_have_every_part_in_the_benchmarks_order(self, task: str) -> None:
        text = PROMPTS[task].text(self.SAMPLE)
        parts = ["<example>", "</example>", PROMPTS[task].answer_form, "<context>", self.SAMPLE.context, "</context>"]
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
        assert text.startswith(PROMPTS[task].instruction)
        assert text.endswith("\n\nQuestion: How many objects is Mary carrying?")
        assert len(text) < 1800

    @pytest.mark.parametrize("task", TASKS)
    def test_examples_are_right(self, task: str) -> None:
        """By the world's own logic, and none with a name or place that occurs in the tests."""
        from evaluation.babilong.world import World

        for facts, question, said in PROMPTS[task].examples:
            world = World()
            for fact in facts.split(". "):
                world.tell(fact)
            expected = world.ask(question)
            assert expected is not None
            assert set(expected.lower().split(",")) <= set(said.lower().rstrip(".").replace(",", " ").split())
