"""The plan of a preparation: the tokenizer, and tasks that any process on any machine can run."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from data_prep.config import CacheConfig, PrepareConfig, TokenType
from data_prep.errors import DataError
from data_prep.files import replacing, write_text
from data_prep.preparation.changes import FileFacts, compare, facts_of
from data_prep.preparation.progress import ByteProgress
from data_prep.preparation.tokenize import Pool
from data_prep.shards.manifest import Record, TokenizerEntry
from data_prep.sources.documents import Document, DocumentReader
from data_prep.sources.hub import is_hub_part
from data_prep.sources.places import InputFile, is_remote
from data_prep.sources.problems import Problems
from data_prep.sources.remote import RemoteCache
from data_prep.sources.selection import sample_hash, sample_texts, sample_threshold, split_of
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

PLAN_FILE = "plan.json"
_TYPE_SIZES: dict[TokenType, int] = {"uint16": 2**16, "uint32": 2**32}


class Task(Record):
    """Input files of one source that are tokenized together."""

    number: int
    source: int
    files: list[FileFacts]

    @property
    def inputs(self) -> list[InputFile]:
        return [InputFile(file.name, file.bytes, file.version) for file in self.files]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class Plan(Record):
    """The plan of one configuration, written before the first task and again when the input changes.

    thresholds: for each source the largest `sample_hash` that is read; None: all documents. unread: for each source,
    messages about links and folders that cannot be read.
    """

    config_hash: str
    tokenizer: TokenizerEntry
    token_type: TokenType
    thresholds: list[int | None]
    tasks: list[Task]
    unread: list[list[str]]


def open_cache(config: PrepareConfig, cache: CacheConfig) -> RemoteCache | None:
    """Returns the cache of remote inputs, or None when all inputs are local."""
    remote = any(source.kind != "hf" and is_remote(source.path or "") for source in config.sources)
    return RemoteCache(cache) if remote else None


def load_plan(config: PrepareConfig, work: Path) -> Plan | None:
    """Returns the plan in `work`, or None when there is none. Raises DataError for a plan of other settings."""
    path = work / PLAN_FILE
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a plan ({error}); delete {work} to begin again") from error
    if plan.config_hash != config.hash:
        raise DataError(
            f"{work}: was begun with other settings (hash {plan.config_hash}, now {config.hash}); "
            "continue with those, choose another folder, or delete it"
        )
    if load_tokenizer(work / plan.tokenizer.file).fingerprint != plan.tokenizer.fingerprint:
        raise DataError(f"{work / plan.tokenizer.file}: was changed; delete {work} to begin again")
    return plan


class Planner:
    """Makes the plan: lists the input, samples it, trains or copies the tokenizer. Equal input gives an equal plan."""

    def __init__(
        self, config: PrepareConfig, work: Path, console: Console, pool: Pool | None, cache: RemoteCache | None
    ) -> None:
        self._config, self._work, self._console, self._pool = config, work, console, pool
        self._readers = [DocumentReader(source, cache) for source in config.sources]

    def make(self) -> Plan:
        unread = [self._check(reader) for reader in self._readers]
        # A given tokenizer that does not fit is refused before any input is read.
        tokenizer = self._load_tokenizer()
        thresholds = [self._threshold(reader) for reader in self._readers]
        if tokenizer is None:
            tokenizer = self._train_tokenizer(thresholds)
        bos, eos = ((tokenizer.piece(id), id) for id in (tokenizer.bos_id, tokenizer.eos_id))
        self._say(
            f"tokenizer {tokenizer.path.name}: documents begin with bos {bos[0]!r} (id {bos[1]}) and end with eos "
            f"{eos[0]!r} (id {eos[1]})"
        )
        tasks: list[Task] = []
        for source, reader in enumerate(self._readers):
            tasks += self._tasks(len(tasks), source, reader.files)
        plan = Plan(
            config_hash=self._config.hash,
            tokenizer=_describe(tokenizer),
            token_type=choose_token_type(self._config.token_type, tokenizer.vocab_size),
            thresholds=thresholds,
            tasks=tasks,
            unread=unread,
        )
        write_text(self._work / PLAN_FILE, plan.model_dump_json(indent=1) + "\n")
        return plan

    def renew(self, plan: Plan, made_of: Callable[[Task], list[FileFacts]]) -> Plan:
        """Returns the plan for the present input and prints the changes; without changes, returns `plan`.

        A task keeps its number and its files, except those that are gone. New files get new tasks. The tokenizer stays.

        Args:
            made_of: the input files of a finished task with checksums, or an unfinished task's files.
        """
        tasks, thresholds, unread = list(plan.tasks), list(plan.thresholds), list(plan.unread)
        for number, (reader, source) in enumerate(zip(self._readers, self._config.sources, strict=True)):
            if source.kind == "hf":  # the hub gives no versions of parts
                continue
            mine = [task for task in plan.tasks if task.source == number]
            reader.check_listing(problems := Problems(self._config.on_error))
            unread[number] = problems.messages
            listed = {file.name: facts_of(file, source) for file in reader.files}
            if listed == {file.name: file.model_copy(update={"xxh3": ""}) for task in mine for file in task.files}:
                continue
            changes, now = compare((file for task in mine for file in made_of(task)), reader.files, source)
            for task in mine:
                files = [now[file.name] for file in task.files if file.name in now]
                tasks[task.number] = task.model_copy(update={"files": files})
            if changes:
                self._say(f"{reader.name}: the input has changed: {changes}")
                self._say(f"{reader.name}: {reader.listing.summary()}")
                new = set(changes.new)
                tasks += self._tasks(len(tasks), number, [file for file in reader.files if file.name in new])
                thresholds[number] = self._threshold(reader)
                if self._config.tokenizer.path is None:
                    self._say("the tokenizer is still that of the earlier input")
        return plan.model_copy(update={"tasks": tasks, "thresholds": thresholds, "unread": unread})

    def _check(self, reader: DocumentReader) -> list[str]:
        """Prints which files a source reads and leaves out; returns messages about those that cannot be read."""
        self._say(f"{reader.name}: {reader.listing.summary()}")
        problems = Problems(self._config.on_error)
        reader.check_listing(problems)
        return problems.messages

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _tasks(self, first: int, source: int, files: list[InputFile]) -> list[Task]:
        settings = self._config.sources[source]
        return [
            Task(number=first + number, source=source, files=[facts_of(file, settings) for file in group])
            for number, group in enumerate(_groups(files, self._config.task_bytes))
        ]

    def _load_tokenizer(self) -> Tokenizer | None:
        given, asked = self._config.tokenizer.path, self._config.token_type
        if given is None:
            choose_token_type(asked, self._config.tokenizer.vocab_size)
            return None
        choose_token_type(asked, load_tokenizer(given).vocab_size)
        path = self._work / f"tokenizer{given.suffix}"  # one of the two that load_tokenizer takes
        with replacing(path) as temporary:
            shutil.copyfile(given.expanduser(), temporary)
        return load_tokenizer(path)

    def _threshold(self, reader: DocumentReader) -> int | None:
        if self._config.max_bytes is None:
            return None
        with ByteProgress(self._console, f"sampling {reader.name}", reader.file_bytes) as advance:
            documents = reader.read(Problems(self._config.on_error), advance)
            return sample_threshold(documents, self._config.max_bytes)

    def _train_tokenizer(self, thresholds: list[int | None]) -> Tokenizer:
        settings, path = self._config.tokenizer, self._work / "tokenizer.model"
        total = sum(reader.file_bytes for reader in self._readers)
        with ByteProgress(self._console, "reading text for the tokenizer", total) as advance:
            left_out: Counter[str] = Counter()
            texts = sample_texts(self._training_documents(thresholds, advance, left_out), settings.train_bytes)
        if not texts:
            raise DataError(_nothing_to_train_on(self._config, left_out))
        title = f"training a tokenizer of {settings.vocab_size:,} pieces on {len(texts):,} documents"
        with self._console.status(title):
            if self._pool is None:
                train_sentencepiece(texts, settings.vocab_size, path)
            else:  # in another process, so that the spinner turns and Ctrl-C works
                self._pool.submit(train_sentencepiece, texts, settings.vocab_size, path).result()
        return load_tokenizer(path)

    def _training_documents(
        self, thresholds: list[int | None], advance: Callable[[int], None], left_out: Counter[str]
    ) -> Iterator[Document]:
        for reader, threshold in zip(self._readers, thresholds, strict=True):
            for document in reader.read(Problems(self._config.on_error), advance):
                if threshold is not None and sample_hash(document.bytes) > threshold:
                    left_out["max_bytes"] += 1
                elif split_of(document.bytes, self._config.valid_fraction) == "valid":
                    left_out["valid_fraction"] += 1
                else:
                    yield document


def _nothing_to_train_on(config: PrepareConfig, left_out: Counter[str]) -> str:
    """Returns why no document is left for the tokenizer, and what to change."""
    if not left_out.total():
        return "sources: no document has text, so no tokenizer can be trained; check sources and text_field"
    held = left_out["valid_fraction"]
    return (
        f"sources: no document is left to train a tokenizer on: of {left_out.total():,}, {held:,} are held out by "
        f"valid_fraction {config.valid_fraction:g} and {left_out['max_bytes']:,} left out by max_bytes; add documents, "
        "or lower valid_fraction (0 holds none out)"
    )


def choose_token_type(asked: TokenType | str, vocab_size: int) -> TokenType:
    """Returns the type of a token on disk. Raises DataError when the type asked for cannot represent every id."""
    if asked == "auto":
        return "uint16" if vocab_size <= _TYPE_SIZES["uint16"] else "uint32"
    token_type: TokenType = "uint16" if asked == "uint16" else "uint32"
    if vocab_size > _TYPE_SIZES[token_type]:
        raise DataError(
            f"token_type is {asked}, which has {_TYPE_SIZES[token_type]} values, but the tokenizer has "
            f"{vocab_size} pieces; set token_type: auto or uint32"
        )
    return token_type


def _groups(files: list[InputFile], size: int) -> Iterator[list[InputFile]]:
    """Yields groups of consecutive files of up to about `size` bytes; a larger file is a group of its own."""
    group: list[InputFile] = []
    total = 0
    for file in files:
        # Parts of a data set on the hub have no known size, so each is a group.
        if group and (total + file.bytes > size or is_hub_part(file)):
            yield group
            group, total = [], 0
        group.append(file)
        total += file.bytes
    if group:
        yield group


def _describe(tokenizer: Tokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        file=tokenizer.path.name,
        kind=tokenizer.kind,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
