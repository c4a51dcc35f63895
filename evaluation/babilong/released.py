"""Read and write samples in the published form: JSON objects with input, question and target."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.files import encodes, lines_of, parse_json, write_text
from data_prep.suggest import did_you_mean
from evaluation.babilong.background import load_hub
from evaluation.babilong.generator import Sample
from evaluation.babilong.lengths import canonical

WHERE = (
    "https://huggingface.co/datasets/RMT-team/babilong has them (data/TASK/LENGTH.json); "
    "--released hf:RMT-team/babilong reads them by name"
)
_KEYS = ("input", "question", "target")


def load_released(place: str, task: str, length: str) -> list[Sample]:
    """Return a cell's samples, from a folder (TASK/LENGTH.json, LENGTH/TASK.json, TASK_LENGTH.json, .jsonl) or hf:NAME.

    Raises `DataError` naming the file, and the row that has another form.
    """
    length = canonical(length)
    if place.startswith("hf:"):
        rows = load_hub(place.removeprefix("hf:"), length, task, "--released")
        return [
            _sample(dict(row), f"{place} {length} {task}:{number}", task, length) for number, row in enumerate(rows)
        ]
    path = find_released(Path(place), task, length)
    return [_sample(row, f"{path}:{number}", task, length) for number, row in enumerate(_rows(path), start=1)]


def find_released(folder: Path, task: str, length: str) -> Path:
    """Return the file of one cell. Raises `DataError` when it is missing."""
    folder, length = folder.expanduser(), canonical(length)
    names = [f"{task}/{length}", f"{length}/{task}", f"{task}_{length}", f"data/{task}/{length}"]
    paths = [folder / f"{name}{suffix}" for name in names for suffix in (".json", ".jsonl")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"--released: {folder} has no {names[0]}.json; {WHERE}")
    return path


def save_released(samples: Iterable[Sample], folder: Path) -> Path:
    """Write the samples of one cell to FOLDER/TASK/LENGTH.json, and return the path."""
    samples = list(samples)
    path = folder / samples[0].task / f"{samples[0].length}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input": s.context, "question": s.question, "target": s.answer} for s in samples]
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=0) + "\n")
    return path


def _rows(path: Path) -> list[Any]:
    """Read a JSON list, a JSON object of columns, or a JSON object in each line."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [parse_json(line) for line in lines_of(text) if line.strip()]
        content = parse_json(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {WHERE}") from None
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _KEYS):
        return [dict(zip(_KEYS, row, strict=True)) for row in zip(*(content[key] for key in _KEYS), strict=True)]
    if not isinstance(content, list):
        raise DataError(f"{path}: is not a list of samples; {WHERE}")
    return content


def _sample(row: Any, where: str, task: str, length: str) -> Sample:
    for key in _KEYS:
        if not isinstance(row, dict) or not isinstance(row.get(key), str) or not encodes(row[key]):
            hint = did_you_mean(key, row) if isinstance(row, dict) else ""
            raise DataError(f"{where}: has no text {key!r}{hint}; {WHERE}")
    return Sample(task, length, row["input"], row["question"], row["target"])
