"""The way from documents to shards: sample, train the tokenizer, tokenize, write."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from .config import PrepareConfig, TokenType
from .documents import Document, DocumentReader
from .errors import DataError
from .manifest import Manifest, ShardEntry, SkippedCounts, Split, TokenizerEntry
from .problems import Problems
from .progress import ByteProgress
from .selection import identity_hash, sample_hash, sample_texts, sample_threshold, split_of
from .tokenize import Pool, tokenize
from .tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from .writer import ShardWriter

_SPLITS: tuple[Split, Split] = ("train", "valid")
_TYPE_SIZES: dict[TokenType, int] = {"uint16": 2**16, "uint32": 2**32}


@dataclass
class _Counts:
    problems: Problems
    duplicates: int = 0
    not_sampled: int = 0


@dataclass
class Build:
    """One run of the pipeline, writing into `folder`."""

    config: PrepareConfig
    folder: Path
    console: Console
    pool: Pool | None
    seen: set[int] = field(default_factory=set)

    def run(self) -> Manifest:
        readers = [DocumentReader(source) for source in self.config.sources]
        # What the tokenizer costs is lost when it does not fit: check the given one before reading a byte.
        tokenizer = self._load_tokenizer()
        thresholds = [self._threshold(reader) for reader in readers]
        if tokenizer is None:
            tokenizer = self._train_tokenizer(readers, thresholds)
        token_type = self.token_type(tokenizer.vocab_size)
        entries: list[ShardEntry] = []
        counts: dict[str, SkippedCounts] = {}
        for reader, threshold in zip(readers, thresholds, strict=True):
            new, counts[reader.name] = self._write_source(reader, threshold, tokenizer, token_type)
            entries += new
        self._check_not_empty(entries, counts)
        return Manifest(
            config_hash=self.config.hash,
            tokenizer=_describe(tokenizer),
            token_type=token_type,
            shards=sorted(entries, key=lambda entry: _SPLITS.index(entry.split)),
            skipped=counts,
            created_with=_versions(),
        )

    def _load_tokenizer(self) -> Tokenizer | None:
        given = self.config.tokenizer.path
        if given is None:
            self.token_type(self.config.tokenizer.vocab_size)
            return None
        self.token_type(load_tokenizer(given).vocab_size)
        suffix = given.suffix  # one of the two that load_tokenizer takes
        return load_tokenizer(Path(shutil.copyfile(given.expanduser(), self.folder / f"tokenizer{suffix}")))

    def token_type(self, vocab_size: int) -> TokenType:
        asked = self.config.token_type
        if asked == "auto":
            return "uint16" if vocab_size <= _TYPE_SIZES["uint16"] else "uint32"
        if vocab_size > _TYPE_SIZES[asked]:
            raise DataError(
                f"token_type is {asked}, which holds {_TYPE_SIZES[asked]} ids, but the tokenizer has "
                f"{vocab_size} pieces; set token_type: auto or uint32"
            )
        return asked

    def _threshold(self, reader: DocumentReader) -> int | None:
        if self.config.max_bytes is None:
            return None
        with ByteProgress(self.console, f"sampling {reader.name}", reader.file_bytes) as advance:
            documents = reader.read(Problems(self.config.on_error), advance)
            return sample_threshold(documents, self.config.max_bytes)

    def _train_tokenizer(self, readers: list[DocumentReader], thresholds: list[int | None]) -> Tokenizer:
        settings, path = self.config.tokenizer, self.folder / "tokenizer.model"
        total = sum(reader.file_bytes for reader in readers)
        with ByteProgress(self.console, "reading text for the tokenizer", total) as advance:
            texts = sample_texts(self._training_documents(readers, thresholds, advance), settings.train_bytes)
        with self.console.status(f"training a tokenizer of {settings.vocab_size:,} pieces on {len(texts):,} documents"):
            if self.pool is None:
                train_sentencepiece(texts, settings.vocab_size, path)
            else:  # in a process of its own, so that the spinner turns and Ctrl-C works meanwhile
                self.pool.submit(train_sentencepiece, texts, settings.vocab_size, path).result()
        return load_tokenizer(path)

    def _training_documents(
        self, readers: list[DocumentReader], thresholds: list[int | None], advance: Callable[[int], None]
    ) -> Iterator[Document]:
        for reader, threshold in zip(readers, thresholds, strict=True):
            for document in reader.read(Problems(self.config.on_error), advance):
                sampled = threshold is None or sample_hash(document.text) <= threshold
                if sampled and split_of(document.text, self.config.valid_fraction) == "train":
                    yield document

    def _write_source(
        self, reader: DocumentReader, threshold: int | None, tokenizer: Tokenizer, token_type: TokenType
    ) -> tuple[list[ShardEntry], SkippedCounts]:
        counts = _Counts(Problems(self.config.on_error))
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    ShardWriter(self.folder, split, reader.name, token_type, self.config.shard_bytes)
                )
                for split in _SPLITS
            }
            advance = stack.enter_context(ByteProgress(self.console, f"tokenizing {reader.name}", reader.file_bytes))
            documents = self._documents(reader, threshold, counts, advance)
            for done in tokenize(documents, tokenizer, token_type, self.pool):
                writers[split_of(done.document.text, self.config.valid_fraction)].add(done.tokens)
        for message in counts.problems.messages:
            self.console.print(f"skipped: {message}", markup=False, highlight=False)
        skipped = SkippedCounts(
            empty=counts.problems.empty,
            damaged=counts.problems.damaged,
            duplicates=counts.duplicates,
            not_sampled=counts.not_sampled,
        )
        return writers["train"].entries + writers["valid"].entries, skipped

    def _documents(
        self, reader: DocumentReader, threshold: int | None, counts: _Counts, advance: Callable[[int], None]
    ) -> Iterator[Document]:
        for document in reader.read(counts.problems, advance):
            identity = identity_hash(document.text)
            if threshold is not None and sample_hash(document.text) > threshold:
                counts.not_sampled += 1
            elif identity in self.seen:
                counts.duplicates += 1
            else:
                self.seen.add(identity)
                yield document

    def _check_not_empty(self, entries: list[ShardEntry], counts: dict[str, SkippedCounts]) -> None:
        if not any(entry.split == "train" for entry in entries):
            left_out = ", ".join(
                f"{name}: {count.empty} empty, {count.damaged} damaged" for name, count in counts.items()
            )
            held_out = sum(entry.documents for entry in entries)
            raise DataError(
                f"sources: no document is left to train on ({left_out}; {held_out} held out by "
                f"valid_fraction {self.config.valid_fraction}); add text or lower valid_fraction"
            )


def _describe(tokenizer: Tokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        file=tokenizer.path.name,
        kind=tokenizer.kind,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )


def _versions() -> dict[str, str]:
    packages = ["pyarrow", "sentencepiece", "tokenizers", "xxhash"]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
