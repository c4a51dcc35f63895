"""Facts of people who do not exist: what is asked about them stands in references and nowhere else."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

ATTRIBUTES = {
    "color": "amber blue crimson green ivory orange purple silver teal violet white yellow",
    "job": "baker captain doctor farmer gardener judge lawyer miner painter singer tailor writer",
    "animal": "badger camel dolphin eagle falcon goat heron lizard otter rabbit tiger wolf",
    "drink": "beer brandy cider cocoa coffee juice lemonade milk soda tea water wine",
    "tool": "anvil axe brush chisel drill hammer knife ladder needle saw shovel wrench",
    "city": "Athens Berlin Cairo Dublin Havana Lima Madrid Oslo Paris Rome Tokyo Vienna",
}
VALUES = {name: values.split() for name, values in ATTRIBUTES.items()}
_PARTS = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeo"]


@dataclass(frozen=True)
class Person:
    """A name that no other has, and a value of each attribute."""

    name: str
    facts: dict[str, str]

    def reference(self, rng: random.Random) -> str:
        """What is written down about the person."""
        names = rng.sample(list(self.facts), len(self.facts))
        return f"About {self.name}. " + " ".join(f"{name}: {self.facts[name]}." for name in names)

    def questions(self, rng: random.Random) -> str:
        """A page of questions with their answers, that says first whom it is about."""
        names = rng.sample(list(self.facts), len(self.facts))
        asked = "".join(prompt(self, name) + f" {self.facts[name]}\n" for name in names)
        return f"Questions about {self.name}.\n{asked}"


def prompt(person: Person, attribute: str) -> str:
    """A question as `evaluation.questions` asks it."""
    return f"Question: what is the {attribute} of {person.name}?\nAnswer:"


def people(count: int, seed: int) -> list[Person]:
    rng, names = random.Random(seed), set[str]()
    while len(names) < count:
        names.add("".join(rng.choice(_PARTS) for _ in range(rng.choice((3, 4)))).capitalize())
    return [Person(n, {a: rng.choice(values) for a, values in VALUES.items()}) for n in sorted(names)]


def write_corpus(folder: Path, train: int, test: int, seed: int) -> None:
    """Write three folders of texts and the questions of the test.

    `open`: pages that say the facts before they ask (other people than anywhere else); `closed`: pages of questions
    alone; `references`: the facts of the closed pages' and of the test's people; `questions.jsonl`: the test's.
    """
    everyone, rng = people(2 * train + test, seed), random.Random(seed + 1)
    rng.shuffle(everyone)
    told, asked, unseen = everyone[:train], everyone[train : 2 * train], everyone[2 * train :]
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "open": [f"{person.reference(rng)}\n{person.questions(rng)}" for person in told],
        "closed": [person.questions(rng) for person in asked],
        "references": [person.reference(rng) for person in [*asked, *unseen]],
    }
    for name, texts in pages.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    asked_about = []
    for person in unseen:
        attribute = rng.choice(list(person.facts))
        question = f"what is the {attribute} of {person.name}?"
        record = {"question": question, "answers": [person.facts[attribute]], "passage": person.reference(rng)}
        asked_about.append(json.dumps(record) + "\n")
    (folder / "questions.jsonl").write_text("".join(asked_about))
