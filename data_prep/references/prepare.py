"""Prepare a folder of references, and the table of the neighbours of the training data's chunks."""

import shutil
from collections.abc import Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_prep.config import DataConfig, PrepareConfig, ReferencePrepareConfig, TokenizerConfig
from data_prep.errors import DataError
from data_prep.files import replacing
from data_prep.preparation.changes import INPUTS_FILE, check_inputs
from data_prep.preparation.prepare import prepare as prepare_documents
from data_prep.preparation.progress import CountProgress
from data_prep.preparation.tokenize import Pool, available_cores
from data_prep.references.cutting import Cutter, document_number
from data_prep.references.neighbours import TableManifest, table_folder, write_table
from data_prep.references.retrieval import INDEX_FOLDER, build_index
from data_prep.references.search import SearchTask, run_search, search_tasks
from data_prep.references.store import ReferenceFile, ReferenceStore, StoreManifest, write_references
from data_prep.shards.columns import map_columns
from data_prep.shards.folder import PreparedFolder
from data_prep.shards.manifest import MANIFEST_FILE, ShardEntry
from data_prep.sources.places import is_remote
from data_prep.tokenizers.tokenizer import load_tokenizer


class ReferencePreparation:
    """The steps: references and index (`plan`), each chunk's neighbour (`run_tasks`), the table (`merge`).

    Every step can be repeated on any machine that has the folders. Finished work is not repeated, and the result does
    not depend on the number of processes or on interruptions.
    """

    def __init__(self, data: DataConfig, console: Console | None = None) -> None:
        """Raises DataError when `data.references.prepare` or the prepared training data are missing."""
        if data.references is None or data.references.prepare is None:
            raise DataError(
                "data.references.prepare is missing; set there what to cut into references (docs/references.md)"
            )
        self.settings: ReferencePrepareConfig = data.references.prepare
        self.folder = data.references.path.expanduser().resolve()
        self.data, self.sequence_length = data, data.sequence_length
        self.console = console or Console(stderr=True)
        self.tokens = PreparedFolder(data.path, data.cache)
        self._workers = self.settings.workers or available_cores()
        fingerprint = self.tokens.manifest.fingerprint
        self.table = table_folder(self.folder, fingerprint, self.sequence_length)
        self.work = self.table.with_name(f"{self.table.name}.work-{self.settings.hash}")

    def open_pool(self, stack: ExitStack) -> Pool | None:
        return stack.enter_context(Pool(self._workers)) if self._workers > 1 else None

    def finished(self) -> TableManifest | None:
        """Returns the table's manifest, or None when there is no table. Raises DataError for one of other settings."""
        if not (self.table / MANIFEST_FILE).is_file():
            return None
        found = TableManifest.read(self.table, "launchers/prepare_data.py")
        if found.settings_hash != self.settings.hash:
            raise DataError(
                f"{self.table}: was prepared with other settings (hash {found.settings_hash}, now "
                f"{self.settings.hash}); choose another data.references.path, or delete that folder"
            )
        check_inputs(self.folder, self.settings.sources or (), self.console)
        return found

    def plan(self, pool: Pool | None = None) -> list[SearchTask]:
        """Cuts the references and makes their index, unless that is done; returns all search tasks."""
        if not (self.folder / MANIFEST_FILE).is_file():
            self._cut(pool)
        store = self._store()
        with self.console.status(f"indexing {len(store):,} references ({self.settings.retriever.kind})"):
            build_index(store, self.settings.retriever)
        return search_tasks(self.tokens, self.settings.task_chunks)

    def existing_plan(self) -> list[SearchTask]:
        """Returns all search tasks. Raises DataError unless `plan` has made references and index."""
        if not ((self.folder / MANIFEST_FILE).is_file() and (self.folder / INDEX_FOLDER).is_dir()):
            raise DataError(f"{self.folder}: has no references with an index yet; run --references --plan first")
        self._store()
        return search_tasks(self.tokens, self.settings.task_chunks)

    def run_tasks(self, tasks: Sequence[SearchTask], pool: Pool | None = None) -> None:
        """Runs the tasks that are not finished."""
        self.work.mkdir(parents=True, exist_ok=True)
        pending = [task for task in tasks if not (self.work / task.file).is_file()]
        if len(pending) < len(tasks):
            self.console.print(f"{self.work}: {len(tasks) - len(pending)} of {len(tasks)} tasks were finished before")
        fingerprints = (self._store().fingerprint, self.tokens.manifest.fingerprint)
        common = (self.settings, self.folder, self.data.path, self.sequence_length, fingerprints)
        total = sum(task.last - task.first for task in pending)
        with CountProgress(self.console, "retrieving for chunks", total) as advance:
            if pool is None:
                for task in pending:
                    advance(run_search(*common, task, self.work))
                return
            for future in as_completed([pool.submit(run_search, *common, task, self.work) for task in pending]):
                advance(future.result())

    def merge(self) -> TableManifest:
        """Makes the table from the finished tasks. Raises DataError when a task is not finished."""
        tasks = search_tasks(self.tokens, self.settings.task_chunks)
        missing = [number for number, task in enumerate(tasks) if not (self.work / task.file).is_file()]
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            raise DataError(
                f"{self.work}: {len(missing)} of {len(tasks)} tasks are not finished ({shown}); run them with "
                "--references --tasks N --task I, then merge again"
            )
        columns = ((entry.file, self._column(tasks, entry)) for entry in self.tokens.manifest.shards)
        store = self._store()
        write_table(store, self.tokens.manifest, self.sequence_length, columns, self.settings.hash)
        shutil.rmtree(self.work, ignore_errors=True)
        manifest = TableManifest.read(self.table, "launchers/prepare_data.py")
        self._report(manifest, store)
        return manifest

    def _store(self) -> ReferenceStore:
        store = ReferenceStore(self.folder)
        if store.manifest.config_hash != self._store_hash:
            raise DataError(
                f"{self.folder}: has references cut with other settings; choose another data.references.path, or "
                "delete that folder"
            )
        check_inputs(self.folder, self.settings.sources or (), self.console)
        store.check_tokenizer(self.tokens.manifest.tokenizer.fingerprint, self.data.path)
        return store

    @property
    def _store_hash(self) -> str:
        """Hash of the settings that determine the references, which those of retrieval do not."""
        names = {"sources", "documents", "length"}
        kept = {name: value for name, value in dict(self.settings).items() if name in names}
        return ReferencePrepareConfig(**kept).hash

    def _cut(self, pool: Pool | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        documents = self._documents()
        manifest = documents.manifest
        source = documents.tokenizer_path
        with replacing(self.folder / manifest.tokenizer.file) as temporary:
            shutil.copyfile(source, temporary)
        entries = [entry for entry in manifest.shards if entry.split == "train"]
        names = [f"references-{number:05d}.arrow" for number in range(len(entries))]
        files: dict[str, ReferenceFile] = {}
        with CountProgress(self.console, "cutting tokens", sum(entry.tokens for entry in entries)) as advance:
            pairs = zip(entries, names, strict=True)
            jobs = [(Path(documents.place), e, self.folder / name, self.settings.length) for e, name in pairs]
            if pool is None:
                for job in jobs:
                    files[job[2].name] = cut_shard(*job)
                    advance(job[1].tokens)
            else:
                futures = {pool.submit(cut_shard, *job): job for job in jobs}
                for future in as_completed(futures):
                    files[futures[future][2].name] = future.result()
                    advance(futures[future][1].tokens)
        StoreManifest(
            config_hash=self._store_hash,
            tokenizer=manifest.tokenizer,
            token_type=manifest.token_type,
            length=self.settings.length,
            files=[files[name] for name in names],
        ).save(self.folder)
        if self.settings.sources is not None:
            if (
                inputs := Path(documents.place) / INPUTS_FILE
            ).is_file():  # folders of earlier versions have no such file
                shutil.copyfile(inputs, self.folder / INPUTS_FILE)
            shutil.rmtree(documents.place)

    def _documents(self) -> PreparedFolder:
        """Returns the prepared folder whose documents are cut: a given one, the training data, or one made here."""
        if self.settings.sources is None:
            place = self.settings.documents or self.data.path
            if is_remote(place):
                raise DataError(f"data.path: {place} is a URL; give data.references.prepare.documents a local folder")
            return PreparedFolder(place)
        tokenizer = TokenizerConfig(path=self.tokens.tokenizer_path)
        settings = PrepareConfig(
            sources=list(self.settings.sources), tokenizer=tokenizer, valid_fraction=0, workers=self.settings.workers
        )
        place = self.folder / "documents"
        prepare_documents(settings, place, self.console, self.data.cache)
        return PreparedFolder(place)

    def _column(self, tasks: Sequence[SearchTask], entry: ShardEntry) -> NDArray[np.int32]:
        parts = [np.load(self.work / task.file) for task in tasks if task.shard == entry.file]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])

    def _report(self, manifest: TableManifest, store: ReferenceStore) -> None:
        columns = [map_columns(self.table / file.file, ["reference"])[0] for file in manifest.files]
        found = np.concatenate([np.empty(0, np.int32), *columns])
        share = float((found >= 0).mean()) if len(found) else 0.0
        used = len(np.unique(found[found >= 0]))
        self.console.print(
            f"{self.folder}: {len(store):,} references of {store.tokens:,} tokens; {share:.1%} of {len(found):,} "
            f"chunks have one, {used:,} references are used",
            soft_wrap=True,
        )


def cut_shard(place: Path, entry: ShardEntry, path: Path, length: int) -> ReferenceFile:
    """Cuts one shard's documents into references of at most `length` tokens, in the file `path`."""
    folder = PreparedFolder(place)
    views = folder.shard(entry).open()
    cutter = Cutter(load_tokenizer(folder.tokenizer_path), length)
    parts, ends, numbers = [], [0], []
    for first, last in zip(views.offsets[:-1].tolist(), views.offsets[1:].tolist(), strict=True):
        document = cutter.bare(views.tokens[first:last])
        number = document_number(document)
        for begin, end in cutter.cuts(document):
            parts.append(document[begin:end])
            ends.append(ends[-1] + end - begin)
            numbers.append(number)
    tokens = np.concatenate([np.empty(0, dtype=views.tokens.dtype), *parts])
    return write_references(path, tokens, ends, numbers)


def prepare_references(data: DataConfig, console: Console | None = None) -> ReferenceStore:
    """Makes `data.references.path` and the table for `data.path`, unless both exist with these settings.

    Raises:
        DataError: see `ReferencePreparation` and `prepare`.
    """
    preparation = ReferencePreparation(data, console)
    if preparation.finished() is None:
        with ExitStack() as stack:
            pool = preparation.open_pool(stack)
            preparation.run_tasks(preparation.plan(pool), pool)
        preparation.merge()
    else:
        preparation.console.print(
            f"{preparation.folder}: references and neighbours are already prepared with these settings"
        )
    return ReferenceStore(preparation.folder)
