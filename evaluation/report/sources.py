"""Read what the page shows: run folders, result files, and published numbers."""

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.field_values import core
from data_prep.yaml_reader import read_yaml
from evaluation.interpret import Analysis, load_analysis
from evaluation.results import Results, Row, load_results
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.monitoring.records import read_metrics

INTERPRETATION = Path("interpretation") / "interpretation.json"


@dataclass(frozen=True)
class Run:
    """A run, or a result file without its run.

    Attributes:
        name: unique on the page.
        folder: of the run; None for a result file.
        results: its evaluations, the newest last.
        steps, evaluations: the lines of metrics.jsonl.
    """

    name: str
    folder: Path | None
    results: list[Results] = field(default_factory=list)
    config: RunConfig | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    interpretation: Analysis | None = None

    @property
    def place(self) -> str:
        """The argument of --checkpoint for commands."""
        return str(self.folder) if self.folder else self.results[-1].checkpoint


@dataclass(frozen=True)
class Evaluated:
    """The rows of one model in one mode, which become a line of a table."""

    name: str
    kind: str
    rows: list[Row]
    simulated: bool
    results: list[Results]


def load_runs(paths: list[Path]) -> list[Run]:
    """Read run folders and result files. Raises `ConfigError` naming every one that cannot be used."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(_load_file(path) if path.is_file() else _load_folder(path))
        except (ConfigError, DataError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    names = [run.name for run in runs]
    again = {name for name in names if names.count(name) > 1}
    return [_renamed(run, path) if run.name in again else run for run, path in zip(runs, paths, strict=True)]


def _renamed(run: Run, path: Path) -> Run:
    return Run(**(vars(run) | {"name": str(path)}))


def _load_file(path: Path) -> Run:
    results = load_results(path)
    return Run(results.run, None, [results])


def _load_folder(folder: Path) -> Run:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"RUN: {folder} is no run's folder (it has no config.yaml) and no file that launchers/evaluate.py wrote; "
            "pass runs/NAME or a .json file"
        )
    results = sorted((load_results(p) for p in sorted((folder / "evaluation").glob("*.json"))), key=lambda r: r.date)
    steps, evaluations = read_metrics(folder / "metrics.jsonl")
    interpretation = folder / INTERPRETATION
    return Run(
        folder.resolve().name,
        folder,
        results,
        load_config(folder / "config.yaml"),
        steps,
        evaluations,
        load_analysis(interpretation) if interpretation.is_file() else None,
    )


def evaluated(runs: list[Run], tasks: str) -> list[Evaluated]:
    """Return the lines of a table of the tasks that match a regular expression.

    A run has a line for each kind, checkpoint and mode (or shots) of its result files. Of a cell that was evaluated
    several times the newest counts.
    """
    lines = []
    for run in runs:
        variants: dict[tuple[str, str, str], list[tuple[Results, Row]]] = {}
        for results in run.results:
            for row in results.rows:
                if re.fullmatch(tasks, row.task):
                    way = f"{row.shots}-shot" if row.shots is not None else row.mode or ""
                    key = (results.model.kind, results.checkpoint, way)
                    variants.setdefault(key, []).append((results, row))
        for key, pairs in variants.items():
            newest = {(row.task, row.length, row.scorer): row for _, row in pairs}
            sources = list({id(results): results for results, _ in pairs}.values())
            parts = [text for text, *others in zip(key, *variants, strict=True) if len(set(others)) > 1]
            parts = [Path(part).name.partition("+")[2] if part == key[0] else Path(part).name for part in parts]
            name = " · ".join([run.name, *filter(None, parts)])
            lines.append(Evaluated(name, key[0], list(newest.values()), _simulated(sources, tasks), sources))
    return lines


def _simulated(results: list[Results], tasks: str) -> bool:
    task = tasks.partition("/")[0]
    return any("simulator" in str(r.data.get(task, {}).get("facts", "")) for r in results)


def published() -> dict[str, Any]:
    """The numbers of the papers, from published.yaml beside this file."""
    text = (resources.files("evaluation.report") / "published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = core(read_yaml(text))
    return found
