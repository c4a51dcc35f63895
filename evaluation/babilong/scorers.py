"""Score answers: by the benchmark's own rule, by equality, and by a corrected version of the benchmark's rule."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from evaluation.babilong.tasks import Task

Scorer = Callable[[str, str, str, Task], bool]
_CUTS = ("<context>", "<example>")
_WORD = re.compile(r"\w+")


def official(output: str, answer: str, question: str, task: Task) -> bool:
    """The released rule: the answer is the only label that is a substring of the output's first sentence.

    Labels that are substrings of the question do not count. Of a list every label must be found and no other. Labels
    are substrings, not words: "one" is in "none", so no output is right when the answer is "none".
    """
    said = output.lower().split(".")[0]
    for cut in _CUTS:
        said = said.split(cut)[0]
    labels = {label.lower() for label in task.labels}
    found = {label for label in labels if label in said and label not in question.lower()}
    wanted = answer.lower().split(",")
    return all(label in found for label in wanted) and len(found) == len(wanted)


def exact(output: str, answer: str, question: str, task: Task) -> bool:
    """The output equals the answer, without regard to case, surrounding white space and a full stop."""
    return output.strip().removesuffix(".").strip().lower() == answer.strip().lower()


def corrected(output: str, answer: str, question: str, task: Task) -> bool:
    """The official rule with words instead of substrings, on a shorter part of the output.

    Only the first line with text counts, up to its first full stop or another "Question:".
    """
    said = output.strip().lower().split("\n")[0].split(".")[0]
    for cut in (*_CUTS, "question:"):
        said = said.split(cut)[0]
    words, asked = set(_WORD.findall(said)), set(_WORD.findall(question.lower()))
    found = {label.lower() for label in task.labels} & (words - asked)
    return found == set(answer.lower().split(","))


SCORERS: dict[str, Scorer] = {"official": official, "exact": exact, "corrected": corrected}


def agreement(judged: Iterable[Sequence[bool]]) -> str:
    """Return a table of how often each combination of the scorers' verdicts occurs, the most frequent first.

    Args: judged: for every output the verdict of each of `SCORERS`.
    """
    counts = Counter(tuple(verdicts) for verdicts in judged)
    lines = [f"{'answers':>8}  " + "  ".join(f"{name:>9}" for name in SCORERS)]
    for verdicts, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"{count:>8,}  " + "  ".join(f"{'right' if verdict else 'wrong':>9}" for verdict in verdicts))
    return "\n".join(lines)
