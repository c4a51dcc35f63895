"""Lists, copies and averages checkpoints."""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from data_prep.files import sync
from training.checkpoint.loading import load_tensors
from training.checkpoint.manifest import (
    POINTER,
    STATE_FILE,
    DamagedError,
    FileEntry,
    check_sizes,
    pointed,
    steps_of,
    verify,
    write_manifest,
)
from training.checkpoint.run_state import RunState, read_run_state
from training.checkpoint.safe_reader import read_metadata
from training.checkpoint.shards import SharePlanner, TensorShard
from training.checkpoint.writer import Storage
from training.config import parse_config
from training.errors import ConfigError


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a run, without reading its tensors."""

    path: Path
    bytes: int  # size of all its files
    latest: bool  # the pointer names it
    problem: str  # what is damaged; empty when nothing was found
    state: RunState | None  # None when it cannot be read


def listed(run: Path) -> Iterator[Listed]:
    """Yield the checkpoints of a run's folder, oldest first. Raises `ConfigError` when it has none."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not steps_of(folder):
        raise ConfigError(f"{run}: has no checkpoints; pass a run's folder such as runs/NAME")
    try:
        latest = pointed(folder)
    except DamagedError:
        latest = None
    for path in steps_of(folder):
        problem, state = "", None
        try:
            check_sizes(path)
            state = read_run_state(path)
        except (DamagedError, ConfigError) as error:
            problem = str(error)
        size = sum(file.stat().st_size for file in path.iterdir())
        yield Listed(path, size, path == latest, problem, state)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint and verify source and copy; nothing is left at `target` when it fails.

    Raises `DamagedError` when a file is damaged, `ConfigError` when `target` exists.
    """
    files = verify(source)
    with made(target) as partial:
        for name in [*files, "manifest.json"]:
            shutil.copyfile(source / name, partial / name)
            sync(partial / name)
        verify(partial)


def average(sources: Sequence[Path], target: Path) -> None:
    """Write a checkpoint whose weights are the means of the weights of `sources`; it has no optimizer state.

    Raises `DamagedError` when a source is damaged, `ConfigError` when their tokenizers, `model` sections, or names or
    shapes of weights differ.
    """
    states = []
    for path in sources:
        verify(path)
        states.append(read_run_state(path))
    _check_one_model(sources, states)
    shapes = [_weights(path) for path in sources]
    for path, found in zip(sources, shapes, strict=True):
        if found != shapes[0]:
            name = sorted({n for n in found.keys() | shapes[0].keys() if found.get(n) != shapes[0].get(n)})[0]
            raise ConfigError(f"{path}: {name} differs in shape from {sources[0]}; average checkpoints of one model")
    boxes = []
    for name, shape in shapes[0].items():
        total = torch.zeros(shape, dtype=torch.float64)
        for path in sources:
            value = torch.empty(shape)
            load_tensors({name: value}, path)
            total += value
        boxes.append(TensorShard(name, shape, torch.Size([0] * len(shape)), (total / len(sources)).float()))
    state = replace(states[-1], optimizer_steps={}, mlflow_run_id="")
    with made(target) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns about typed storage and about a single process
        storage = Storage(partial)
        dcp.save({}, storage_writer=storage, planner=SharePlanner(boxes), no_dist=True)
        (partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        sync(partial / STATE_FILE)
        write_manifest(partial, storage.entries | {STATE_FILE: FileEntry.of(partial / STATE_FILE)})


def _check_one_model(sources: Sequence[Path], states: Sequence[RunState]) -> None:
    """Raise `ConfigError` when the tokenizers or the `model` sections differ, so that equal shapes mean other things.

    A checkpoint that does not name its tokenizer is assumed to have the tokenizer of the others.
    """
    models = [parse_config(state.config).model.model_dump(mode="json") for state in states]
    first = next((at for at, state in enumerate(states) if state.tokenizer), 0)
    for path, state, model in zip(sources, states, models, strict=True):
        if state.tokenizer not in ("", states[first].tokenizer):
            raise ConfigError(
                f"{path}: was trained with another tokenizer (fingerprint {state.tokenizer}) than {sources[first]} "
                f"({states[first].tokenizer}), so a row of the embedding means another token; average checkpoints of "
                "one tokenizer"
            )
        if changed := [key for key in model if model[key] != models[0][key]]:
            key = changed[0]
            raise ConfigError(
                f"{path}: model.{key} is {model[key]}, but {models[0][key]} in {sources[0]}; average checkpoints of "
                "one model"
            )


def _weights(path: Path) -> dict[str, torch.Size]:
    """Return name and shape of every weight, without moments and random state."""
    stored: dict[str, Any] = read_metadata(path).state_dict_metadata
    return {name: entry.size for name, entry in stored.items() if "/" not in name and name != "rng"}


@contextmanager
def made(target: Path) -> Iterator[Path]:
    """Give a folder to fill; rename it to `target` at the end, or delete it when the block raises.

    Raises `ConfigError` when `target` exists.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another name or delete it")
    if target.name == POINTER:
        raise ConfigError(f"{target}: is the name of the pointer; choose another")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        partial.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
