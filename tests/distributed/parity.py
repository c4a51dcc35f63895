"""The parity matrix: warmup, switch and memory phase on every topology against one rank.

    make parity                                       all cells, a table, runs/parity.json; goes on where it was ended
    python -m tests.distributed.parity --only delta   the cells whose name contains a text

Every cell trains the same 10 steps of a 4-layer model on the same random tokens, packed documents and unequal counts
of valid labels: 3 of the warmup, a checkpoint, 7 of the memory phase from that checkpoint.  It compares losses, global
gradient norms, every updated weight and the greedily generated text.  fp32, gloo.
"""

import argparse
import hashlib
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from data_prep.files import write_text
from model import build_model
from model.generation import Sampling, generate
from model.memory.registry import choices
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import LENGTH, SAMPLES, step_batch, tiny_config, whole_weights
from training.checkpoint.folder import CheckpointFolder, RunState, restore
from training.config import RunConfig
from training.distributed.topology import RankInfo, initialize
from training.engine import build_engine
from training.errors import ConfigError

WARMUP, STEPS, RATE = 3, 10, 3e-3
TOLERANCE = {"loss": 1e-5, "grad_norm": 1e-5, "weights": 1e-4}  # relative, relative, absolute
TEXT = 16  # tokens generated
FOLDERS = ("model", "training", "tests/distributed")
FAILED = {
    "loss": math.inf,
    "grad_norm": math.inf,
    "weights": math.inf,
    "same_text": 0.0,
}  # of a cell that ended in an error

SIZES: dict[str, dict[str, Any]] = {
    "lm2": {"slots": 4, "heads": 2},
    "lm2-depth": {"heads": 2},
    "delta": {"heads": 2},
    # with memory wide open (1.0) rounding grows ten times faster: after 10 steps tensor 2 differs by 2e-5
    "rmt": {"slots": 2, "rmt_open": 0.25},
}
REGISTERED = choices()  # those of installed packages too
KINDS: dict[str, dict[str, Any]] = {name: kind.selects | SIZES.get(name, {}) for name, kind in REGISTERED.items()}
# what a pipeline takes of a kind whose segments are computed one after the other
KINDS |= {f"{name}, one segment": KINDS[name] for name, kind in REGISTERED.items() if kind.carry_travels}
KINDS["lm2, explicit"] = KINDS["lm2"]  # with references, in longer samples
EXPLICIT = {"bos": [1, 2], "reference_length": 12, "tokens": 3, "references": 3}
EXPLICIT_LENGTH = 256  # four chunks
PARALLEL = [name for name, kind in REGISTERED.items() if not kind.sequential]
SEQUENTIAL = [name for name, kind in REGISTERED.items() if kind.sequential]


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix; the number of ranks is the product of the four sizes."""

    kind: str
    tied: bool
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    segment: int = 1
    sequence: bool = False
    zero: int = 1
    offload: str = "none"
    recompute: str = "none"

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data * self.segment

    @property
    def shape(self) -> str:
        parts = {"tensor": self.tensor, "pipeline": self.pipeline, "data": self.data, "segment": self.segment}
        named = " x ".join(f"{name} {size}" for name, size in parts.items() if size > 1) or "1 rank"
        return named + (", sequence" if self.sequence else "")

    def __str__(self) -> str:
        head = "tied" if self.tied else "untied"
        offload = "" if self.offload == "none" else f", offload {self.offload}"
        return f"{self.kind}, {head}, {self.shape}, ZeRO {self.zero}{offload}, recompute {self.recompute}"

    def config(self) -> RunConfig:
        """Raises `ConfigError` where the combination is refused."""
        on, explicit = KINDS[self.kind]["kind"] != "none", self.kind.endswith("explicit")
        length = EXPLICIT_LENGTH if explicit else LENGTH
        segment = 128 if explicit else LENGTH if self.kind.endswith("one segment") else 8
        step = {"tokens": 16 * SAMPLES * length, "tokens_per_step": SAMPLES * length, "lr": {"peak": RATE}}
        return tiny_config(
            data={"path": "unused", "sequence_length": length, "references": "unused" if explicit else None},
            model__memory=KINDS[self.kind],
            model__explicit=EXPLICIT if explicit else None,
            model__tie_embeddings=self.tied,
            model__segment_length=segment,
            phases=[{"name": name, "memory": memory, **step} for name, memory in (("warmup", False), ("memory", on))],
            parallel={k: getattr(self, k) for k in ("tensor", "pipeline", "segment", "sequence")},
            training={
                "micro_batch_size": 1 if self.data > 2 else 2,
                "zero_stage": self.zero,
                "offload": self.offload,
                "activation_checkpointing": self.recompute,
            },
        )


SHAPES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]  # tensor, pipeline, data


def cells() -> Iterator[Cell]:
    """The whole matrix, without what `refused` lists."""
    for kind, tied in product(KINDS, (False, True)):
        yield from _shapes(kind, tied)
    for kind in PARALLEL:
        for pipeline, data, recompute in ((1, 1, "none"), (2, 1, "none"), (1, 2, "none"), (2, 1, "full")):
            yield Cell(kind, True, 2, pipeline, data, sequence=True, recompute=recompute)
    for kind in PARALLEL:
        if REGISTERED[kind].exists:
            yield from _segments(kind)
    for zero, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")):
        yield Cell("lm2", False, data=2, zero=zero, offload=offload)


def _shapes(kind: str, tied: bool) -> Iterator[Cell]:
    only_without_pipeline, only_with = kind in SEQUENTIAL, kind.endswith("one segment")
    for tensor, pipeline, data in SHAPES:
        if only_without_pipeline if pipeline > 1 else only_with:
            continue
        for zero, recompute in product((1, 2, 3) if pipeline == 1 else (1,), ("none", "selective", "full")):
            yield Cell(kind, tied, tensor, pipeline, data, zero=zero, recompute=recompute)


def _segments(kind: str) -> Iterator[Cell]:
    shapes = ((2, 1, 1, 1), (4, 1, 1, 1), (2, 2, 1, 1), (2, 1, 2, 1), (2, 1, 1, 2), (2, 2, 2, 1))
    for (segment, tensor, pipeline, data), recompute in product(shapes, ("none", "full")):
        yield Cell(kind, False, tensor, pipeline, data, segment, zero=3 if data > 1 else 1, recompute=recompute)
    yield Cell(kind, False, tensor=2, segment=2, sequence=True)


def refused() -> Iterator[Cell]:
    """What DeepSpeed or the method cannot do: each must raise at load."""
    for zero in (2, 3):
        yield Cell("lm2", False, pipeline=2, zero=zero)
    yield Cell("lm2", False, pipeline=2, offload="optimizer")
    yield Cell("lm2", False, data=2, offload="all")
    yield Cell("lm2, explicit", False, segment=2)
    yield Cell("lm2, explicit", False, tensor=2, sequence=True)
    for kind in SEQUENTIAL:
        yield Cell(kind, False, pipeline=2)
        yield Cell(kind, False, segment=2)
        yield Cell(kind, False, tensor=2, sequence=True)


def scenario(config: RunConfig, folder: str) -> dict[str, Any]:
    """Warmup, switch through a checkpoint, memory phase.  Collective."""
    topology = initialize(config, RankInfo.discover())
    checkpoints, results = CheckpointFolder(Path(folder), topology), []
    for index, steps in enumerate((range(WARMUP), range(WARMUP, STEPS))):
        engine = build_engine(config, config.phases[index], topology)
        if index:
            latest = checkpoints.latest()
            assert latest is not None
            restore(engine, latest, topology, moments=True, rng=True)
        for step in steps:
            explicit = config.model.explicit if index else None
            micro_batch_size, length = config.training.micro_batch_size, config.data.sequence_length
            batch = step_batch(step, topology, micro_batch_size, length, explicit)
            results.append(engine.train_step(batch, RATE * min(1.0, (step + 1) / 4)))
        if not index:
            state = RunState(WARMUP, 0, 0, "warmup", WARMUP, engine.optimizer_steps(), "", "", {}, {})
            checkpoints.save(engine, state)
            engine.close()
    weights = whole_weights(engine, topology)
    out = {"loss": [r.loss for r in results], "grad_norm": [r.grad_norm for r in results]}
    return out | ({"weights": weights} if topology.is_main else {})


def run(cell: Cell) -> dict[str, Any]:
    """What rank 0 of the cell saw, with the text its weights generate."""
    config = cell.config()
    with tempfile.TemporaryDirectory() as folder:
        result = run_ranks(scenario, cell.ranks, config, folder, timeout=300)[0]
    net = build_model(config.model, memory_on=config.phases[1].memory)
    net.load_state_dict({n: v for n, v in result["weights"].items() if "/" not in n}, strict=False)
    prompt = torch.arange(20).unsqueeze(0)
    return result | {"text": [int(t) for t in generate(net, prompt, TEXT, Sampling(temperature=0.0))]}


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Largest differences: relative of losses and norms, absolute of weights; whether the text is the same."""

    def relative(key: str) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(found[key], expected[key], strict=True))

    weights = expected["weights"]
    assert found["weights"].keys() == weights.keys()
    largest = max(float((found["weights"][n] - w).abs().max()) for n, w in weights.items() if "/" not in n)
    same_text = float(found["text"] == expected["text"])
    return {"loss": relative("loss"), "grad_norm": relative("grad_norm"), "weights": largest, "same_text": same_text}


def holds(difference: dict[str, float]) -> bool:
    """Whether a cell equals one rank within the tolerances."""
    return difference["same_text"] == 1.0 and all(difference[key] <= limit for key, limit in TOLERANCE.items())


def check_refusals() -> list[str]:
    """Cells that should be refused at load and are not."""
    accepted = []
    for cell in refused():
        try:
            cell.config()
        except ConfigError:
            continue
        accepted.append(str(cell))
    return accepted


def table(results: dict[Cell, dict[str, float]]) -> Table:
    """Largest differences by shape and ZeRO stage, over kinds, heads and recomputation."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for cell, difference in results.items():
        stage = f"{cell.zero}" + ("" if cell.offload == "none" else f", offload {cell.offload}")
        rows.setdefault((cell.shape, stage), []).append(difference)
    out = Table("ranks", "ZeRO", "cells", "loss", "gradient norm", "weights", "same text")
    for (shape, stage), found in rows.items():
        largest = [f"{max(d[key] for d in found):.1e}" for key in TOLERANCE]
        out.add_row(shape, stage, str(len(found)), *largest, f"{sum(d['same_text'] for d in found):.0f}")
    return out


@cache
def code() -> str:
    """What is measured: git's ids of the folders with the code when the matrix began, and which files were edited."""

    def answer(*command: str) -> str:
        return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout

    ids = answer("rev-parse", *(f"HEAD:{folder}" for folder in FOLDERS))
    edited = answer("status", "--porcelain", "--", *FOLDERS)
    return hashlib.sha256((ids + edited).encode()).hexdigest()[:12] + (" edited" if edited else "")


def measured(path: Path) -> dict[str, dict[str, float]]:
    """Cells that an earlier run of the same code left in `path`, by name."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = record.get("code") == code() and record.get("torch") == torch.__version__
    return {cell.pop("cell"): cell for cell in record["cells"]} if same else {}


def save(results: dict[Cell, dict[str, float]], path: Path) -> None:
    """What was measured so far."""
    record = {"code": code(), "torch": torch.__version__, "machine": platform.machine(), "tolerance": TOLERANCE}
    path.parent.mkdir(parents=True, exist_ok=True)
    differences = [{"cell": str(cell), **difference} for cell, difference in results.items()]
    write_text(path, json.dumps(record | {"cells": differences}, indent=0) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/parity.json"), help="what was measured, as JSON")
    options = parser.parse_args()
    console = Console()
    chosen = [cell for cell in cells() if options.only in str(cell)]
    references: dict[tuple[str, bool], dict[str, Any]] = {}
    known = {} if options.only else measured(options.out)
    results: dict[Cell, dict[str, float]] = {cell: known[str(cell)] for cell in chosen if str(cell) in known}
    started = time.monotonic()
    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        for cell in progress.track([cell for cell in chosen if cell not in results], description="cells"):
            key = (cell.kind, cell.tied)
            if key not in references:
                references[key] = run(Cell(*key))
            try:
                results[cell] = compare(run(cell), references[key])
            except (AssertionError, TimeoutError) as error:
                progress.console.print(f"FAILS {cell}: {str(error).strip().splitlines()[-1][:300]}")
                results[cell] = FAILED
            if not holds(results[cell]):
                progress.console.print(f"DIFFERS {cell}: {results[cell]}")
            if not options.only:
                save(results, options.out)
    console.print(table(results))
    wrong, accepted = [cell for cell, d in results.items() if not holds(d)], check_refusals()
    for name in accepted:
        console.print(f"NOT REFUSED {name}")
    minutes = (time.monotonic() - started) / 60
    console.print(f"{len(results)} cells, {len(wrong)} differ; {len(list(refused()))} refused; {minutes:.0f} minutes")
    return 1 if wrong or accepted else 0


if __name__ == "__main__":
    sys.exit(main())
