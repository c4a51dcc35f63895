"""The ten tasks: their possible answers, and their ability in LM2's Figure 3."""

from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.errors import DataError
from data_prep.suggest import did_you_mean

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")


@dataclass(frozen=True)
class Task:
    """A task; labels: the possible answers. An answer of qa8 is a list of labels, joined by commas."""

    name: str
    title: str
    labels: tuple[str, ...]
    capability: str


_SINGLE, _MULTI, _RELATION = "single-step reasoning", "multi-step reasoning", "relation tracking"
_BASIC, _NEGATION = "basic queries", "negation and uncertainty"
TASKS = {
    task.name: task
    for task in (
        Task("qa1", "one supporting fact", ROOMS, _SINGLE),
        Task("qa2", "two supporting facts", ROOMS, _MULTI),
        Task("qa3", "three supporting facts", ROOMS, _MULTI),
        Task("qa4", "two-argument relations", ROOMS, _RELATION),
        Task("qa5", "three-argument relations", ("Bill", "Fred", "Jeff", "Mary", *OBJECTS), _RELATION),
        Task("qa6", "yes or no", ("no", "yes"), _BASIC),
        Task("qa7", "counting", ("none", "one", "three", "two"), _BASIC),
        Task("qa8", "lists", (*OBJECTS, "nothing"), _BASIC),
        Task("qa9", "simple negation", ("no", "yes"), _NEGATION),
        Task("qa10", "indefinite knowledge", ("maybe", "no", "yes"), _NEGATION),
    )
}


def find_tasks(names: Iterable[str]) -> list[Task]:
    """Return tasks by name. Raises `DataError` for an unknown one."""
    tasks = []
    for name in names:
        if name not in TASKS:
            raise DataError(f"--tasks: {name!r} is not a task of BABILong{did_you_mean(name, TASKS)}")
        tasks.append(TASKS[name])
    return tasks
