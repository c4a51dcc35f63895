"""Read bAbI from a data set of the Hugging Face hub (`facebook/babi_qa`), which has a row for each story."""

from typing import Any

from data_prep.errors import DataError
from evaluation.babilong.background import hub_splits, load_hub
from evaluation.babilong.facts import Question


def hub_questions(place: str, task: str, split: str) -> list[Question]:
    """Return the questions of a split of `hf:NAME[:SUBSET]`. Raises `DataError`."""
    name, subset = _named(place, task)
    rows = load_hub(name, subset, split, "--babi")
    if "story" not in rows.column_names:
        raise DataError(f"--babi: data set {name} has no column 'story', only {', '.join(rows.column_names)}")
    return [question for row in rows for question in _story(row["story"])]


def splits_there(place: str, task: str) -> list[str]:
    """Return the names of the data set's splits. Raises `DataError`."""
    return hub_splits(*_named(place, task), "--babi")


def _named(place: str, task: str) -> tuple[str, str]:
    """Return name and subset of `hf:NAME[:SUBSET]`, with {task} in SUBSET replaced; the default is en-10k-{task}."""
    _, name, subset = (place + ":en-10k-{task}").split(":")[:3]
    return name, subset.replace("{task}", task)


def _story(story: Any) -> list[Question]:
    """Return the questions of a row.

    Its columns id, text, type (0: fact, 1: question), supporting_ids and answer have an entry for each line.
    """
    if isinstance(story, list):
        story = {key: [line[key] for line in story] for key in story[0]}
    facts: dict[str, str] = {}
    questions = []
    for number, text, kind, supporting, answer in zip(
        *(story[key] for key in ("id", "text", "type", "supporting_ids", "answer")), strict=True
    ):
        if kind == 0:
            facts[str(number)] = text.strip()
            continue
        places = {place: index for index, place in enumerate(facts)}
        known = tuple(places[str(place)] for place in supporting if str(place) in places)
        questions.append(Question(tuple(facts.values()), text.strip(), answer.strip(), known))
    return questions
