"""Stories to train on, and the questions that none of them may have."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.babilong.randomness import Keyed
from evaluation.babilong.sources import SPLITS, missing, splits_of
from evaluation.babilong.stories import Story, stories_of


@dataclass(frozen=True)
class Material:
    """What exercises are made of beside the simulator's stories.

    stories: task -> those of its training file; a task that is not there has the simulator's alone.
    held_out: identities of all questions of the files to evaluate with; no exercise has one of them.
    left_out: task -> questions of its training file that are among these.
    """

    stories: dict[str, list[Story]] = field(default_factory=dict)
    held_out: frozenset[int] = frozenset()
    left_out: dict[str, int] = field(default_factory=dict)

    def story(self, task: str, rng: Keyed) -> Story | None:
        """One of the task's stories; None: it has none."""
        found = self.stories.get(task)
        return rng.choice(found) if found else None


def load_material(babi: str | None, tasks: Sequence[str]) -> Material:
    """Reads TASK_train.txt of each task, and what may not be learned from TASK_test.txt and TASK_valid.txt.

    babi: a folder, or hf:NAME; None: no files, the simulator tells all stories.

    Raises:
        DataError: the folder or a task's training file is missing, or is none of bAbI's.
    """
    if babi is None:
        return Material()
    read: dict[str, list[Story]] = {}
    held_out: set[int] = set()
    for task in tasks:
        splits = splits_of(babi, task)
        if not splits.keys() & set(SPLITS["train"]):
            raise missing(babi, task, "train")
        for split in splits.keys() & set(SPLITS["test"]):
            held_out |= {question.identity for question in splits[split]()}
        read[task] = stories_of(splits["train"]())
    stories, left_out = dict[str, list[Story]](), dict[str, int]()
    for task, found in read.items():
        allowed = [story.without(held_out) for story in found]
        left_out[task] = sum(len(story.questions) for story in found) - sum(len(story.questions) for story in allowed)
        stories[task] = [story for story in allowed if story.questions]
    return Material(stories, frozenset(held_out), left_out)
