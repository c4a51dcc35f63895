"""The work of `launchers/evaluate.py`, after it has read its arguments."""

import json
import platform
import resource
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.errors import DataError
from data_prep.files import write_text
from evaluation.babilong.templates import FINETUNED_LAYOUT
from evaluation.cells import Cell, Outcome
from evaluation.options import Options
from evaluation.reader import Reader
from evaluation.results import ModelFacts, Results, Row, load_results
from evaluation.suite import Suite, answers_path
from evaluation.tables import show
from model.config import ModelConfig
from model.memory.none.spec import NoMemoryConfig
from training.checkpoint.trained_model import LoadedModel, load_model
from training.config import RunConfig
from training.monitoring.units import clock


def evaluate(
    checkpoint: Path,
    options: Options,
    output: Path | None = None,
    data: Path | None = None,
    batch_size: int = 8,
    command: str = "",
    console: Console | None = None,
) -> Results:
    """Measure the cells that `output` does not have, write each to it when it is done, and print the tables.

    Raises `DataError` or `ConfigError`, before anything is measured or written, when files are missing, the tokenizer
    is not the checkpoint's, or `output` has results of another checkpoint or other settings.
    """
    console = console or Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_model(checkpoint, device)
    suite = Suite(options, trained, trained.tokenizer(data), exercise_layout(trained.config), data)
    output = output or default_output(trained.path, options)
    results = begin(output, trained, options, suite, device, command)
    waiting = [cell for cell in suite.cells if not all(results.has(*key) for key in cell.keys)]
    if len(waiting) < len(suite.cells):
        console.print(f"{output}: has {len(suite.cells) - len(waiting)} of {len(suite.cells)} cells already")
    reader = Reader(trained.net, batch_size)
    _measure(waiting, reader, suite, results, output, console)
    show(console, results, [answers_path(output, cell) for cell in suite.cells])
    console.print(f"written: {output}", soft_wrap=True)
    return results


def exercise_layout(config: RunConfig) -> str:
    """Return the prompt layout of the run's own exercises, or data_prep's default when it had none."""
    sources = config.data.prepare.sources if config.data.prepare else []
    layouts = [source.prompt for source in sources if source.kind == "task"]
    return layouts[0] if layouts else FINETUNED_LAYOUT


def default_output(checkpoint: Path, options: Options) -> Path:
    """Return a path in the run's `evaluation/`, with checkpoint, mode and kind of retrieval in its name."""
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    parts = [checkpoint.name, options.mode] + ([options.retrieval] if options.retrieval != "none" else [])
    return run / "evaluation" / f"{'-'.join(parts)}.json"


def begin(
    output: Path, trained: LoadedModel, options: Options, suite: Suite, device: torch.device, command: str
) -> Results:
    """Return the results at `output`, to continue them, or new ones when the file does not exist.

    Raises `DataError` when the file has results of another checkpoint, model or settings.
    """
    fresh = Results(
        checkpoint=str(trained.path),
        run=trained.config.run.name,
        model=model_facts(trained, options),
        tokens=trained.state.tokens,
        phase=trained.state.phase,
        seed=trained.config.run.seed,
        device=device_name(device),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        settings=options.settings(),
        data=suite.describe(),
    )
    if not output.exists():
        return fresh
    before = load_results(output)
    for old, new in (
        ({"checkpoint": before.checkpoint}, {"checkpoint": fresh.checkpoint}),
        (before.model.model_dump(), fresh.model.model_dump()),
        (before.settings, fresh.settings),
    ):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if names:
            changes = ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in names)
            raise DataError(f"--output: {output} was made with {changes}; give another file, or delete it")
    before.data = merged(before.data, fresh.data)
    return before


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return `old` updated by `new`, nested dictionaries too, so that facts of tasks measured before stay."""
    both = {name: merged(old[name], new[name]) for name in old.keys() & new.keys() if isinstance(old[name], dict)}
    return {**old, **new, **both}


def model_facts(trained: LoadedModel, options: Options) -> ModelFacts:
    """Return what a results file says of the model that was evaluated."""
    config = trained.config.model
    return ModelFacts(
        name=trained.config.run.name,
        kind=kind_of(config, trained.net.memory_on) + ("+rag" if options.retrieval != "none" else ""),
        parameters=sum(parameter.numel() for parameter in trained.net.parameters()),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        segment_length=config.segment_length,
        vocab_size=config.vocab_size,
        memory_on=trained.net.memory_on,
    )


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"


def kind_of(config: ModelConfig, memory_on: bool) -> str:
    """Return the label of the memory (`lm2-time`, `delta`, ...), or none when the memory is off."""
    kind = config.memory.label if memory_on else NoMemoryConfig.label
    return kind + ("+explicit" if memory_on and config.explicit is not None else "")


def _measure(cells: list[Cell], reader: Reader, suite: Suite, results: Results, output: Path, console: Console) -> None:
    """Run the cells, and save the results after each."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("evaluating", total=sum(cell.tokens for cell in cells))
        read = done = 0
        seconds = 0.0

        def advance(tokens: int) -> None:
            nonlocal read
            read += tokens
            progress.advance(task, tokens)

        reader.advance = advance
        for number, cell in enumerate(cells, start=1):
            progress.update(task, description=f"{cell.name} ({number}/{len(cells)})")
            started = time.perf_counter()
            outcome = cell.run(reader)
            seconds += time.perf_counter() - started
            done += cell.tokens
            progress.update(task, completed=done)
            _keep(outcome, cell, results, output)
            results.tokens_per_second = round(read / seconds, 1)
            results.peak_memory_bytes = peak_memory(reader.device)
            results.data = merged(results.data, suite.describe())
            results.save(output)
            left = sum(other.tokens for other in cells[number:]) * seconds / max(1, done)
            console.print(f"{cell.name}: {_said(outcome.rows)}, {clock(left)} left", soft_wrap=True)


def _said(rows: list[Row]) -> str:
    """Return a cell's values in a line; rows of perplexity differ in their length, others in their scorer."""
    if not rows[0].samples:
        return "no question has facts that fit"
    parts = [
        f"{row.scorer} {row.accuracy:.2f}" if row.accuracy is not None else f"{row.length} {row.value:.3f}"
        for row in rows
    ]
    return f"{', '.join(parts)} ({rows[0].samples} samples)"


def _keep(outcome: Outcome, cell: Cell, results: Results, output: Path) -> None:
    if outcome.answers:
        path = answers_path(output, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in outcome.answers))
    results.rows = [row for row in results.rows if row.cell not in cell.keys] + outcome.rows
    results.series.update(outcome.series)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes of this process, on a GPU or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
