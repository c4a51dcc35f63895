"""Material to make exercises of: files like bAbI's, books and a tokenizer; and the facts of an exercise, found anew."""

from pathlib import Path

from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import Places
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import Story, story_of
from evaluation.babilong.world import World

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
WORDS = ("the", "river", "stone", "old", "said,", "went", "under", "“quietly”", "morning;", "letter", "of", "a")


def book(number: int) -> str:
    rng = Keyed("book", number)
    return " ".join(
        " ".join(rng.choice(WORDS) for _ in range(3 + rng.below(15))).capitalize() + "." for _ in range(300)
    )


def as_babi(stories: list[Story]) -> str:
    lines = []
    for story in stories:
        for number, item in enumerate(story.items, start=1):
            lines.append(f"{number} {item}" if isinstance(item, str) else f"{number} {item[0]} \t{item[1]}\t")
    return "\n".join(lines) + "\n"


def write_places(folder: Path) -> Places:
    """bAbI's files of the simulator's stories, of which every fifth is in train and valid files; books; a tokenizer."""
    (folder / "books").mkdir()
    for number in range(2):
        (folder / "books" / f"{number}.txt").write_text(book(number))
    texts = [book(0)]
    for task in TASKS:
        stories = [story_of(tell_story(task, Keyed(task, number))) for number in range(60)]
        (folder / f"{task}_train.txt").write_text(as_babi(stories))
        (folder / f"{task}_valid.txt").write_text(as_babi(stories[::5]))
        texts += [" ".join(story.facts) + "\n".join(map(" ".join, story.items[-1:])) for story in stories]
    train_sentencepiece(texts, 500, folder / "tokenizer.model")
    return Places(folder / "tokenizer.model", str(folder), (str(folder / "books"),))


def told(sentences: tuple[str, ...]) -> tuple[str, ...]:
    """The facts among sentences of books."""
    found = []
    for sentence in sentences:
        try:
            World().tell(sentence)
        except ValueError:
            continue
        found.append(sentence)
    return tuple(found)
