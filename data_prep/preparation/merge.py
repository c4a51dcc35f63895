"""Merge finished tasks into a prepared folder: drop duplicates between tasks, write the manifest, rename once."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_prep.config import PrepareConfig
from data_prep.errors import DataError
from data_prep.files import sync, write_text
from data_prep.preparation.changes import INPUTS_FILE, FileFacts, Inputs
from data_prep.preparation.minhash import Signature, near_duplicates
from data_prep.preparation.plan import Plan
from data_prep.preparation.task import IDENTITIES_FILE, SIGNATURES_FILE, TaskResult, load_result, task_folder
from data_prep.shards.manifest import Manifest, ShardEntry, SkippedCounts, Split
from data_prep.shards.reading import Mask, Shard
from data_prep.shards.writer import write_shard

SKIPPED_FILE = "skipped.txt"
_SPLITS: tuple[Split, Split] = ("train", "valid")


def merge(config: PrepareConfig, work: Path, plan: Plan, folder: Path, console: Console) -> Manifest:
    """Makes `folder` from the tasks in `work` and removes `work`. After a kill it can be run again.

    Raises:
        DataError: a task is not finished, no document is left, or another process has made `folder` meanwhile.
    """
    results = _results(work, plan)
    building = work / "merged"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    drops = _duplicates(config, work, results)
    entries: list[ShardEntry] = []
    skipped: dict[str, SkippedCounts] = {source.label: SkippedCounts() for source in config.sources}
    for number, (result, drop) in enumerate(zip(results, drops, strict=True)):
        source = config.sources[plan.tasks[number].source]
        entries += _place(task_folder(work, number), building, result, drop != 0, source.pack_length is not None, plan)
        late = SkippedCounts(duplicates=int(np.sum(drop == 1)), near_duplicates=int(np.sum(drop == 2)))
        skipped[source.label] = skipped[source.label].plus(result.skipped).plus(late)
    for source, unread in zip(config.sources, plan.unread, strict=True):
        skipped[source.label] = skipped[source.label].plus(SkippedCounts(damaged=len(unread)))
    _check_not_empty(config, entries, skipped)
    manifest = Manifest(
        config_hash=config.hash,
        tokenizer=plan.tokenizer,
        token_type=plan.token_type,
        shards=sorted(entries, key=lambda entry: _SPLITS.index(entry.split)),
        skipped=skipped,
        created_with=_versions(),
    )
    _link(work / plan.tokenizer.file, building / plan.tokenizer.file)
    _report(results, plan, building, console)
    _save_inputs(config, plan, results, building)
    manifest.save(building)
    _move(building, folder)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _results(work: Path, plan: Plan) -> list[TaskResult]:
    results = {task.number: load_result(work, plan, task.number) for task in plan.tasks}
    missing = [number for number, result in results.items() if result is None]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise DataError(
            f"{work}: {len(missing)} of {len(plan.tasks)} tasks are not finished ({shown}); run them with "
            "--tasks N --task I, or run all without these options, then merge again"
        )
    return [result for result in results.values() if result is not None]


def _duplicates(config: PrepareConfig, work: Path, results: list[TaskResult]) -> list[NDArray[np.int8]]:
    """Returns int8 [documents] for each task: 1 duplicate of an earlier document, 2 near duplicate, 0 neither."""
    arrays = [np.load(task_folder(work, number) / IDENTITIES_FILE) for number in range(len(results))]
    ends = np.cumsum([len(array) for array in arrays])
    everything = np.concatenate([np.empty(0, np.uint64), *arrays])
    drop = np.zeros(len(everything), dtype=np.int8)
    if config.dedup.kind != "none":
        order = np.argsort(everything, kind="stable")
        same = everything[order][1:] == everything[order][:-1]
        drop[order[1:][same]] = 1
    if config.dedup.kind == "minhash":
        loaded = [task_folder(work, number) / SIGNATURES_FILE for number in range(len(results))]
        files = [np.load(path) for path in loaded if path.is_file()]
        pairs = ((int(i), s) for file in files for i, s in zip(file["identities"], file["signatures"], strict=True))
        near = np.array(sorted(near_duplicates(_first_only(pairs), config.dedup)), dtype=np.uint64)
        drop[(drop == 0) & np.isin(everything, near)] = 2
    drop[everything == 0] = 0  # padding of packed rows, which is no document
    return np.split(drop, ends[:-1]) if len(ends) else []


def _first_only(pairs: Iterable[tuple[int, Signature]]) -> Iterator[tuple[int, Signature]]:
    seen: set[int] = set()
    for identity, signature in pairs:
        if identity not in seen:
            seen.add(identity)
            yield identity, signature


def _place(
    source: Path, target: Path, result: TaskResult, drop: NDArray[np.bool_], packed: bool, plan: Plan
) -> list[ShardEntry]:
    """Puts a task's shards into `target`, linked, or written again without dropped documents; returns their entries."""
    entries, first = [], 0
    for entry in result.entries:
        mine = drop[first : first + entry.documents]
        first += entry.documents
        if not mine.any():
            _link(source / entry.file, target / entry.file)
            entries.append(entry)
            continue
        views = Shard(source, entry, plan.token_type).open()
        lengths = np.diff(views.offsets)
        gone = np.repeat(mine, lengths)
        if packed:  # a packed row must keep its place, so the document stays and is not learned
            assert views.loss_mask is not None
            mask: Mask | None = np.where(gone, 0, views.loss_mask).astype(np.uint8)
            tokens, offsets = views.tokens, views.offsets.tolist()
        else:
            mask = None if views.loss_mask is None else views.loss_mask[~gone]
            tokens, offsets = views.tokens[~gone], np.concatenate([[0], np.cumsum(lengths[~mine])]).tolist()
        if len(offsets) > 1:
            entries.append(write_shard(target / entry.file, entry.split, entry.source, tokens, mask, offsets))
    return entries


def _link(source: Path, target: Path) -> None:
    """Links the file under a second name, so that a killed merge has moved nothing."""
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
        sync(target)


def _save_inputs(config: PrepareConfig, plan: Plan, results: list[TaskResult], building: Path) -> None:
    """Writes the facts of the input files, so that a later call can find out whether they have changed."""
    files: dict[str, list[FileFacts]] = {source.label: [] for source in config.sources}
    for task, result in zip(plan.tasks, results, strict=True):
        files[config.sources[task.source].label] += result.inputs
    write_text(building / INPUTS_FILE, Inputs(sources=files).model_dump_json(indent=1) + "\n")


def _report(results: list[TaskResult], plan: Plan, building: Path, console: Console) -> None:
    for message in [message for result in results for message in result.warnings][:10]:
        console.print(f"warning: {message}", markup=False, highlight=False)
    messages = [message for unread in plan.unread for message in unread]
    messages += [message for result in results for message in result.messages]
    for message in messages[:10]:
        console.print(f"skipped: {message}", markup=False, highlight=False)
    if messages:
        write_text(building / SKIPPED_FILE, "".join(message + "\n" for message in messages))
    if len(messages) > 10:
        console.print(f"… and {len(messages) - 10:,} more in {SKIPPED_FILE}")


def _check_not_empty(config: PrepareConfig, entries: list[ShardEntry], counts: dict[str, SkippedCounts]) -> None:
    if not any(entry.split == "train" for entry in entries):
        left_out = "; ".join(
            f"{name}: " + ", ".join(f"{count} {reason}" for reason, count in found.model_dump().items() if count)
            for name, found in counts.items()
        )
        held_out = sum(entry.documents for entry in entries)
        raise DataError(
            f"sources: no document is left to train on ({left_out}; {held_out} held out by "
            f"valid_fraction {config.valid_fraction}); add text or lower valid_fraction"
        )


def _versions() -> dict[str, str]:
    packages = ["pyarrow", "sentencepiece", "tokenizers", "xxhash"]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _move(building: Path, folder: Path) -> None:
    try:
        os.replace(building, folder)  # noqa: PTH105
    except OSError as error:
        raise DataError(
            f"{folder}: cannot move the finished data there ({error.strerror}); another process may "
            "have prepared it meanwhile: run again, or choose another folder"
        ) from error
    sync(folder.parent)
