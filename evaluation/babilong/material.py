"""Stories to train on, and the questions of the evaluation, which no exercise may have."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.babilong.randomness import Keyed
from evaluation.babilong.sources import SPLITS, missing, splits_of
from evaluation.babilong.stories import Story, stories_of


@dataclass(frozen=True)
class Material:
    """The sources of exercises beside the simulator.

    stories: task -> whole stories of its training file; a task without them has only simulated ones.
    held_out: identities of all questions of the evaluation files, which no exercise has.
    left_out: task -> number of questions of its training file that are held out.
    """

    stories: dict[str, list[Story]] = field(default_factory=dict)
    held_out: frozenset[int] = frozenset()
    left_out: dict[str, int] = field(default_factory=dict)

    def story(self, task: str, rng: Keyed) -> Story | None:
        """Return a random story of the task, or None when it has none."""
        stories = self.stories.get(task)
        return rng.choice(stories) if stories else None


def load_material(babi: str | None, tasks: Sequence[str]) -> Material:
    """Read the stories of TASK_train.txt, and the held-out questions of TASK_test.txt and TASK_valid.txt, of each task.

    babi: a folder, or hf:NAME; None: all stories are simulated.

    Raises:
        DataError: the folder or a task's training file is missing, or is not in bAbI's form.
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
    left_out = {
        task: sum(question.identity in held_out for story in stories for question in story.questions)
        for task, stories in read.items()
    }
    return Material(read, frozenset(held_out), left_out)
