"""One task of a preparation: tokenize some input files of one source into a folder, which is renamed when whole."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data_prep.config import CacheConfig, PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.files import sync, write_text
from data_prep.preparation.changes import FileFacts, facts_now, is_local
from data_prep.preparation.minhash import Signature, signature
from data_prep.preparation.plan import Plan, Task, open_cache
from data_prep.preparation.tokenize import Pool, Tokenized, tokenize
from data_prep.shards.manifest import Record, ShardEntry, SkippedCounts, Split
from data_prep.shards.writer import ShardWriter
from data_prep.sources.documents import Document, DocumentReader
from data_prep.sources.filters import rejected_by
from data_prep.sources.problems import Problems
from data_prep.sources.selection import identity_hash, sample_hash, split_of
from data_prep.stream.packing import PackedWriter
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer

RESULT_FILE, IDENTITIES_FILE, SIGNATURES_FILE = "task.json", "identities.npy", "signatures.npz"


class TaskResult(Record):
    """The result of a finished task: its shards, its documents in no shard, and the input files it was made from."""

    entries: list[ShardEntry]
    skipped: SkippedCounts
    messages: list[str]
    warnings: list[str]
    inputs: list[FileFacts]
    threshold: int | None

    def is_of(self, plan: Plan, task: Task) -> bool:
        """Whether the result was made from the task's files as the plan lists them."""
        if self.threshold != plan.thresholds[task.source] or len(self.inputs) != len(task.files):
            return False
        return all(done.same_as(file) for done, file in zip(self.inputs, task.files, strict=True))


def task_folder(work: Path, number: int) -> Path:
    """Return the folder below `work` that holds the result of task `number`."""
    return work / "tasks" / f"{number:05d}"


def load_result(work: Path, plan: Plan, number: int) -> TaskResult | None:
    """Returns the result of a finished task, or None when it is not finished or its input has changed since."""
    result = _stored(work, number)
    return result if result is not None and result.is_of(plan, plan.tasks[number]) else None


def made_of(work: Path, task: Task) -> list[FileFacts]:
    """Returns the input files that a finished task was made from, or the files of an unfinished task."""
    result = _stored(work, task.number)
    return task.files if result is None else result.inputs


def _stored(work: Path, number: int) -> TaskResult | None:
    path = task_folder(work, number) / RESULT_FILE
    try:
        return TaskResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete {path.parent} and run again") from error


def run_task(
    config: PrepareConfig,
    cache: CacheConfig,
    work: Path,
    plan: Plan,
    number: int,
    pool: Pool | None,
    advance: Callable[[int], None],
) -> TaskResult:
    """Runs one task, unless it is finished, and returns its result. It depends on configuration and files alone.

    Raises:
        DataError: a document is damaged (with on_error: fail), or an input file differs from the plan.
    """
    finished = load_result(work, plan, number)
    if finished is not None:
        return finished
    task = plan.tasks[number]
    inputs = _inputs_of(task, config.sources[task.source])
    folder = task_folder(work, number)
    building = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    building.mkdir(parents=True)
    try:
        run = _Run(config, plan, task, building, load_tokenizer(work / plan.tokenizer.file))
        result = run.run(cache, pool, advance, inputs)
        if [file.version for file in _inputs_of(task, run.source, False)] != [file.version for file in inputs]:
            raise DataError(f"{folder}: its input changed while it was read; run the same command again")
        write_text(building / RESULT_FILE, result.model_dump_json(indent=1) + "\n")
        _put(building, folder, work, plan, number)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


def _put(building: Path, folder: Path, work: Path, plan: Plan, number: int) -> None:
    """Renames a finished task's folder. If another process has finished it, its folder, with equal bytes, stays."""
    try:
        building.rename(folder)
    except OSError:
        if load_result(work, plan, number) is None:  # the existing folder is of earlier input
            shutil.rmtree(folder)
            building.rename(folder)
    sync(folder.parent)


def _inputs_of(task: Task, source: SourceConfig, checksum: bool = True) -> list[FileFacts]:
    """Returns the present facts of the task's files. Raises DataError when a file differs from the plan."""
    inputs = []
    for file in task.files:
        now: FileFacts | None = file
        if is_local(file.name):
            try:
                now = facts_now(file.name, source, checksum)
            except OSError:  # reading the file will report it
                now = file
            if now is None or (now.bytes, now.version) != (file.bytes, file.version):
                said = "it is gone" if now is None else f"it has {now.bytes} and was written since"
                raise DataError(
                    f"{file.name}: had {file.bytes} bytes when the work began, now {said}; run the same command again: "
                    "tasks whose files have not changed are kept"
                )
        assert now is not None
        inputs.append(now)
    return inputs


class _Run:
    def __init__(self, config: PrepareConfig, plan: Plan, task: Task, folder: Path, tokenizer: Tokenizer) -> None:
        self._config, self._plan, self._task, self._folder = config, plan, task, folder
        self._tokenizer = tokenizer
        self.source: SourceConfig = config.sources[task.source]
        self._problems = Problems(config.on_error)
        self._skipped = {"duplicates": 0, "not_sampled": 0, "filtered": 0}
        self._seen: set[int] = set()
        self._signatures: dict[int, Signature] = {}
        self._writers: dict[tuple[Split, str], ShardWriter] = {}
        self._packers: dict[tuple[Split, str], PackedWriter] = {}

    def run(
        self,
        cache_config: CacheConfig,
        pool: Pool | None,
        advance: Callable[[int], None],
        inputs: list[FileFacts],
    ) -> TaskResult:
        cache = open_cache(self._config, cache_config)
        reader = DocumentReader(self.source, cache, (self._tokenizer.bos_id, self._tokenizer.eos_id))
        with ExitStack() as stack:
            if cache is not None:
                stack.callback(cache.close)
            documents = self._kept(reader.read(self._problems, advance, self._task.inputs))
            # Documents that are tokenized already need no other process.
            helpers = None if self.source.is_tokens else pool
            for done in tokenize(documents, self._tokenizer, self._plan.token_type, helpers):
                self._write(done, stack)
            for packer in self._packers.values():
                packer.flush()
        writers = [self._writers[key] for key in sorted(self._writers)]
        identities = [array for writer in writers for array in writer.identities]
        np.save(self._folder / IDENTITIES_FILE, np.concatenate([np.empty(0, np.uint64), *identities]))
        if self._signatures:
            keys = np.array(list(self._signatures), dtype=np.uint64)
            values = np.stack(list(self._signatures.values()))
            np.savez(self._folder / SIGNATURES_FILE, identities=keys, signatures=values)
        return TaskResult(
            entries=[entry for writer in writers for entry in writer.entries],
            skipped=SkippedCounts(empty=self._problems.empty, damaged=self._problems.damaged, **self._skipped),
            messages=self._problems.messages,
            warnings=self._problems.warnings,
            inputs=inputs,
            threshold=self._plan.thresholds[self._task.source],
        )

    def _kept(self, documents: Iterator[Document]) -> Iterator[Document]:
        threshold, dedup = self._plan.thresholds[self._task.source], self._config.dedup
        for document in documents:
            content = document.bytes
            identity = identity_hash(content)
            if threshold is not None and sample_hash(content) > threshold:
                self._skipped["not_sampled"] += 1
            elif document.text and rejected_by(document.text, self._config.filters):
                self._skipped["filtered"] += 1
            elif dedup.kind != "none" and identity in self._seen:
                self._skipped["duplicates"] += 1
            else:
                self._seen.add(identity)
                if dedup.kind == "minhash" and document.text:
                    self._signatures[identity] = signature(document.text, dedup)
                yield document

    def _write(self, done: Tokenized, stack: ExitStack) -> None:
        content = done.document.bytes
        split = split_of(content, self._config.valid_fraction)
        source, tokens, length = self._binned(len(done.tokens)), done.tokens, self.source.pack_length
        if length is not None and len(tokens) > length:
            self._problems.bad(
                f"{done.document.origin}: is {len(tokens)} tokens long, pack_length is {length}",
                "raise pack_length and data.sequence_length, or set on_error: skip",
            )
            return
        key, identity = (split, source), identity_hash(content)
        if key not in self._writers:
            self._writers[key] = stack.enter_context(self._writer(*key))
            if length is not None:
                self._packers[key] = PackedWriter(self._writers[key], length, self._tokenizer.eos_id)
        if length is not None:
            self._packers[key].add(tokens, done.loss_mask, identity)
        else:
            self._writers[key].add(tokens, done.loss_mask, identities=(identity,))

    def _writer(self, split: Split, source: str) -> ShardWriter:
        packed = self.source.pack_length is not None
        return ShardWriter(
            self._folder,
            split,
            source,
            self._plan.token_type,
            self._config.shard_bytes,
            masked=packed or self.source.kind == "task",
            prefix=f"{self._task.number:05d}-",
            tail=self._tokenizer.eos_id if packed else None,
        )

    def _binned(self, length: int) -> str:
        """Returns the source's name for a document of `length` tokens, with its bin if there are bins."""
        if not self.source.length_bins:
            return self.source.label
        for limit in self.source.length_bins:
            if length <= limit:
                return f"{self.source.label}-{limit}"
        return f"{self.source.label}-over"
