"""MMLU (Hendrycks et al. 2021) from its CSV files: k examples, then the likelihood of the four letters.

Prompt and choice are those of lm-evaluation-harness' task `mmlu`, so that the numbers are equal.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.reader import Reader, encode_pair
from evaluation.results import Row, share_row

WHERE = (
    "MMLU's files (MIT) are at https://people.eecs.berkeley.edu/~hendrycks/data.tar ; pass the folder with dev/ and "
    "test/"
)
LETTERS = ("A", "B", "C", "D")
SPLITS = ("test", "val")
_CATEGORIES = {
    "STEM": """abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics
        college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics
        high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning""",
    "Humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
        professional_law world_religions""",
    "Social Sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "Others": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management
        marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
CATEGORY = {subject: name for name, subjects in _CATEGORIES.items() for subject in subjects.split()}
SUBJECTS = tuple(sorted(CATEGORY))
CATEGORIES = tuple(_CATEGORIES)
LEVELS = ("High School", "College", "Professional", "General")


def level_of(subject: str) -> str:
    """Return the level in the subject's name, as in LM2's Table 2; General for names without a level."""
    return next((level for level in LEVELS if subject.startswith(level.lower().replace(" ", "_") + "_")), "General")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with four choices; answer: the index of the right one."""

    question: str
    choices: tuple[str, str, str, str]
    answer: int

    def text(self) -> str:
        """Return question and choices, up to and with "Answer:"."""
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))
        return f"{self.question.strip()}\n{choices}\nAnswer:"


def read_problems(path: Path) -> list[Problem]:
    """Read a CSV file without header: question, four choices, letter. Raises `DataError` naming the row."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); {WHERE}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 6 or row[5].strip() not in LETTERS:
            raise DataError(
                f"{path}: row {number} has {len(row)} columns and ends in {row[-1:]}; it must have a question, four "
                f"choices and one of A, B, C, D; {WHERE}"
            )
    return [Problem(row[0], (row[1], row[2], row[3], row[4]), LETTERS.index(row[5].strip())) for row in rows]


@dataclass(frozen=True)
class Mmlu:
    """MMLU's files in a folder: dev/SUBJECT_dev.csv for examples, test/ or else val/ for questions.

    Raises `DataError` when the folder has neither.
    """

    folder: Path
    shots: int = 5

    def __post_init__(self) -> None:
        if not any(self._path(SUBJECTS[0], split).parent.is_dir() for split in SPLITS):
            raise DataError(f"--mmlu: {self.folder} has no folder test/ or val/; {WHERE}")

    @property
    def split(self) -> str:
        return next(split for split in SPLITS if self._path(SUBJECTS[0], split).parent.is_dir())

    def problems(self, subject: str) -> list[Problem]:
        return self._read(subject, self.split)

    def prompts(self, subject: str, problems: Iterable[Problem]) -> Iterator[str]:
        """Yield the prompts before the letter: a line about the subject, the examples, the question.

        Raises `DataError` when there are fewer examples than shots.
        """
        examples = self._read(subject, "dev")[: self.shots] if self.shots else []
        if len(examples) < self.shots:
            raise DataError(
                f"--shots: {self.shots}, but {self._path(subject, 'dev')} has {len(examples)} questions; lower --shots"
            )
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        shown = "".join(f"{example.text()} {LETTERS[example.answer]}\n\n" for example in examples)
        return (head + shown + problem.text() for problem in problems)

    def _read(self, subject: str, split: str) -> list[Problem]:
        path = self._path(subject, split)
        if not path.is_file():
            raise DataError(f"--mmlu: {path} is missing; {WHERE}")
        return read_problems(path)

    def _path(self, subject: str, split: str) -> Path:
        root = self.folder / "data" if (self.folder / "data").is_dir() else self.folder
        return root / split / f"{subject}_{split}.csv"


def evaluate_subject(reader: Reader, tokenizer: Tokenizer, mmlu: Mmlu, subject: str, limit: int | None) -> Row:
    """Return the accuracy on the first `limit` questions of a subject (None: all)."""
    problems = mmlu.problems(subject)[:limit]
    chosen = choose(reader, tokenizer, list(mmlu.prompts(subject, problems)))
    right = sum(letter == problem.answer for letter, problem in zip(chosen, problems, strict=True))
    return share_row(
        right,
        len(problems),
        task=f"mmlu/{subject}",
        category=CATEGORY[subject],
        level=level_of(subject),
        shots=mmlu.shots,
        scorer="likelihood",
    )


def choose(reader: Reader, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[int]:
    """Return the index of the most likely letter after each prompt; of equal ones the first."""
    encode: Callable[[str], list[int]] = lambda text: [tokenizer.bos_id, *tokenizer.encode(text)]  # noqa: E731
    requests = [encode_pair(encode, prompt, f" {letter}") for prompt in prompts for letter in LETTERS]
    scores = [score for score, _ in reader.log_likelihoods(requests)]
    by_prompt = [scores[at : at + len(LETTERS)] for at in range(0, len(scores), len(LETTERS))]
    return [four.index(max(four)) for four in by_prompt]


def averages(rows: Iterable[Row]) -> list[Row]:
    """Return rows of each category, each level and all, averaged over questions, not subjects."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.task.startswith("mmlu/"):
            for name in (str(row.category), str(row.level), "Average"):
                groups.setdefault(name, []).append(row)
    means = []
    for name in (*CATEGORIES, *LEVELS, "Average"):
        members = groups.get(name, [])
        right = sum(round((row.accuracy or 0) * row.samples) for row in members)
        if members:
            means.append(share_row(right, sum(row.samples for row in members), task=name, scorer="likelihood"))
    return means
