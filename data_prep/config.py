"""Settings of the data: what to read, how to tokenize it, how to mix it."""

import itertools
import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_prep.sources.places import LocalPlace, OptionalPlace, Place

SourceKind = Literal["python-stdlib", "text", "jsonl", "parquet", "arrow", "task", "bin", "megatron", "hf"]
TokenType = Literal["uint16", "uint32"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_LABEL = 150  # characters; file names add the split, numbers and the ending of a temporary file
CHUNK = 64  # tokens of a chunk, which are the query of one retrieval (arXiv 2407.01178)
_SUFFIXES = re.compile(r"(\.(jsonl|json|parquet|arrow|txt|md|bin|idx|gz|zst))+$")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(_Settings):
    """One body of documents."""

    kind: SourceKind = Field(
        description="python-stdlib: the .py files of the running Python's standard library; "
        "text: *.txt and *.md, a file is a document; "
        "jsonl: *.jsonl, .jsonl.gz, .jsonl.zst, a line is a document; "
        "parquet, arrow: *.parquet, *.arrow (IPC file or stream), a row is a document; "
        "task: JSONL of context, question and answer, or of a list of these as turns; only answers are learned; "
        "bin: token shards *.bin of llm.c (uint16) or of LM2's repository (uint32); "
        "megatron: *.bin with its *.idx; "
        "hf: a data set by its name, through the package datasets"
    )
    path: OptionalPlace = Field(
        default=None,
        description="file, folder (read recursively) or glob, local or a URL that fsspec reads (s3://, gs://, hf://); "
        "a data set's name for hf; not for python-stdlib",
    )
    name: str | None = Field(default=None, description="source name recorded in the shards; default: from kind or path")
    text_field: str = Field(default="text", min_length=1, description="JSON key or column that holds the text")
    subset: str | None = Field(default=None, description="hf: the data set's configuration")
    subset_split: str = Field(default="train", description="hf: the data set's split that is read")
    prompt: str = Field(default="{context}\n{question}\n", description="task: text before the answer")
    pack_length: int | None = Field(
        default=None,
        ge=2,
        description="set to data.sequence_length to pack documents so that no sample cuts one; null: samples may",
    )
    length_bins: tuple[int, ...] = Field(
        default=(),
        description="numbers of tokens n; documents of up to n tokens go to source NAME-n, longer ones to NAME-over",
    )

    @field_validator("name")
    @classmethod
    def _name_fits_a_file_name(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError(f"is {name!r}; it becomes part of file names: use letters, digits, '.', '_' and '-'")
        return name

    @field_validator("length_bins")
    @classmethod
    def _bins_increase(cls, bins: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in itertools.pairwise((0, *bins))):
            raise ValueError(f"are {list(bins)}; they must be numbers of tokens, at least 1, that increase")
        return bins

    @model_validator(mode="after")
    def _label_fits_a_file_name(self) -> "SourceConfig":
        if len(self.label) > _LONGEST_LABEL:
            raise ValueError(
                f"name is {self.label!r}, {len(self.label)} characters; it becomes part of file names: set a name of "
                f"at most {_LONGEST_LABEL}"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "SourceConfig":
        if self.kind == "python-stdlib" and self.path is not None:
            raise ValueError(f"path is {str(self.path)!r}, but kind python-stdlib finds its own files: remove path")
        if self.kind != "python-stdlib" and self.path is None:
            raise ValueError(f"path is missing: kind {self.kind} needs a file, a folder or a glob")
        if self.kind == "task" and not all(key in self.prompt for key in ("{context}", "{question}")):
            raise ValueError(f"prompt is {self.prompt!r}; it must contain {{context}} and {{question}}")
        return self

    @property
    def label(self) -> str:
        """The source's name: `name`, else the path's last part as a file name, else the kind."""
        if self.name is not None:
            return self.name
        if self.path is None:
            return self.kind
        # A part with glob signs ("*.jsonl") is no name, so the folder before it gives the name.
        parts = PurePosixPath(str(self.path).replace("://", "/")).parts
        plain = [part for part in parts if not any(sign in part for sign in "*?[")]
        stem = _SUFFIXES.sub("", plain[-1]) if plain else ""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or self.kind

    @property
    def is_tokens(self) -> bool:
        """Whether the documents are tokenized already."""
        return self.kind in ("bin", "megatron")


class FilterConfig(_Settings):
    """Which documents are left out because of their content. By default none is."""

    min_characters: int = Field(default=0, ge=0, description="shorter documents are left out")
    max_characters: int | None = Field(default=None, ge=1, description="longer documents are left out")
    min_alphabetic_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of letters among characters other than white space; documents below it are left out",
    )
    max_repeated_line_share: float = Field(
        default=1,
        ge=0,
        le=1,
        description="share of repeated lines among lines that are not blank; documents above it are left out",
    )
    min_mean_word_length: float = Field(
        default=0, ge=0, description="characters of a word; documents below it are left out"
    )
    max_mean_word_length: float | None = Field(
        default=None, gt=0, description="characters of a word; documents above it are left out"
    )


class DedupConfig(_Settings):
    """Which documents are left out because an earlier one has the same, or nearly the same, text."""

    kind: Literal["exact", "minhash", "none"] = Field(
        default="exact", description="exact: the same text; minhash: also nearly the same (needs the extra dedup)"
    )
    threshold: float = Field(default=0.8, gt=0, lt=1, description="minhash: Jaccard similarity of word shingles")
    permutations: int = Field(default=128, ge=16, le=1024, description="minhash: numbers of a signature")
    shingle_words: int = Field(default=5, ge=1, description="minhash: words of a shingle")


class TokenizerConfig(_Settings):
    """A tokenizer to load, or the settings to train one."""

    path: LocalPlace | None = Field(
        default=None,
        description="existing SentencePiece .model or Hugging Face tokenizer.json; null trains a new one",
    )
    vocab_size: int = Field(
        default=32_000, ge=260, description="pieces to train, of which 259 are bytes and special tokens"
    )
    train_bytes: int = Field(
        default=20_000_000, gt=0, description="bytes of text to train on, sampled from all sources"
    )


class PrepareConfig(_Settings):
    """How documents become token shards."""

    sources: list[SourceConfig] = Field(min_length=1, description="where documents come from")
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="tokenizer to load or to train")
    valid_fraction: float = Field(default=0.01, ge=0, lt=1, description="share of documents held out, by document hash")
    shard_bytes: int = Field(default=268_435_456, ge=4096, description="bytes of tokens in a shard")
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="read about this many bytes of text per source, a sample by document hash; null: all",
    )
    workers: int | None = Field(
        default=None, ge=1, description="tokenizing processes; null: all cores; never changes output"
    )
    token_type: Literal["auto"] | TokenType = Field(
        default="auto", description="type of a token on disk; auto: uint16 up to 65,536 pieces, else uint32"
    )
    task_bytes: int = Field(
        default=1_073_741_824, gt=0, description="input files are grouped into tasks of about this many bytes"
    )
    filters: FilterConfig = Field(default=FilterConfig(), description="documents to leave out because of their content")
    dedup: DedupConfig = Field(default=DedupConfig(), description="documents to leave out as duplicates")
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="what a damaged document does: end the preparation, or be left out and counted"
    )

    @model_validator(mode="after")
    def _tokens_have_a_tokenizer(self) -> "PrepareConfig":
        imported = [source.label for source in self.sources if source.is_tokens]
        if imported and self.tokenizer.path is None:
            raise ValueError(f"tokenizer.path is missing: {imported[0]!r} is tokenized already; name its tokenizer")
        if imported and self.max_bytes is not None:
            raise ValueError(f"max_bytes is {self.max_bytes}, but {imported[0]!r} is tokens, not text: remove one")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "PrepareConfig":
        labels = [source.label for source in self.sources]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"sources: two are called {label!r}; give each one its own `name`")
        return self

    @property
    def hash(self) -> str:
        """xxh3 (hex) of all settings that can change the output.

        on_error cannot: where `fail` succeeds, nothing was damaged, and `skip` writes the same. Defaults are left out,
        so that a setting that is added later does not change the hashes of existing folders.
        """
        settings = self.model_dump_json(exclude={"workers", "on_error"}, exclude_defaults=True)
        return xxhash.xxh3_64_hexdigest(settings.encode())


class RetrieverConfig(_Settings):
    """How a chunk's reference is retrieved."""

    kind: Literal["bm25", "dense"] = Field(
        default="bm25", description="bm25: by words, nothing to install; dense: by embeddings (needs the extra dense)"
    )
    k1: float = Field(default=1.5, ge=0, description="bm25: the higher, the more repetitions of a word count")
    b: float = Field(default=0.75, ge=0, le=1, description="bm25: how much the score of long references is reduced")
    model: str = Field(default="BAAI/bge-m3", description="dense: a sentence-transformers model, name or folder")
    index: str = Field(default="Flat", description="dense: FAISS index factory, as Flat or IVF4096,PQ64")


class ReferencePrepareConfig(_Settings):
    """How documents are cut into references, and how a reference is retrieved for every chunk of the training data."""

    sources: tuple[SourceConfig, ...] | None = Field(
        default=None, min_length=1, description="where the documents come from; null: from `documents`"
    )
    documents: LocalPlace | None = Field(
        default=None, description="prepared folder whose documents are cut; null, without sources: data.path itself"
    )
    length: int = Field(default=128, ge=8, description="most tokens of a reference")
    retriever: RetrieverConfig = Field(default=RetrieverConfig(), description="how a chunk's reference is retrieved")
    candidates: int = Field(
        default=8,
        ge=1,
        description="references retrieved for a chunk; the first one that the rules allow is its neighbour",
    )
    max_overlap: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="a reference is not used when more than this share of it is in the training sample",
    )
    max_overlap_valid: float = Field(default=2 / 3, gt=0, le=1, description="the same for the validation split")
    exclude_same_document: bool = Field(
        default=False, description="a chunk never gets a reference cut from its own document"
    )
    task_chunks: int = Field(default=16_384, ge=1, description="chunks of 64 tokens in a task")
    workers: int | None = Field(default=None, ge=1, description="processes; null: all cores; never changes output")

    @model_validator(mode="after")
    def _one_origin(self) -> "ReferencePrepareConfig":
        if self.sources is not None and self.documents is not None:
            raise ValueError(f"documents is {str(self.documents)!r}, but sources are given too: remove one")
        return self

    @property
    def hash(self) -> str:
        """xxh3 (hex) of all settings that can change the output."""
        settings = self.model_dump_json(exclude={"workers", "task_chunks"}, exclude_defaults=True)
        return xxhash.xxh3_64_hexdigest(settings.encode())


class ReferencesConfig(_Settings):
    """References for a model with explicit memory."""

    path: LocalPlace = Field(description="folder of references, and of tables with the reference of each chunk")
    prepare: ReferencePrepareConfig | None = Field(
        default=None, description="how to make the folder when it is missing"
    )


class CacheConfig(_Settings):
    """Where copies of remote files are kept."""

    folder: LocalPlace = Field(default=Path("~/.cache/memtrain"), description="local folder of the copies")
    max_bytes: int = Field(
        default=100_000_000_000,
        gt=0,
        description="largest size of the folder; the least recently used file is deleted first",
    )
    read_ahead: int = Field(default=2, ge=0, description="files that are fetched before they are needed")


class DataConfig(_Settings):
    """The data of a training run."""

    path: Place = Field(
        description="prepared folder: manifest.json, shards and tokenizer; local, or a URL that fsspec reads"
    )
    sequence_length: int = Field(ge=1, description="tokens of a training sample")
    mix: dict[str, float] | None = Field(default=None, description="source name -> weight; null: by size")
    prepare: PrepareConfig | None = Field(default=None, description="how to make the folder when it is missing")
    checksums: Literal["first touch", "never"] = Field(
        default="first touch",
        description="first touch: a shard's checksum is compared before its first token is used; never: for folders "
        "too large for that, which prepare_data.py --verify checks once",
    )
    shuffle_shards: int | None = Field(
        default=None,
        ge=1,
        description="number of shards of a source that are shuffled together, for remote folders larger than the "
        "cache; null: all",
    )
    cache: CacheConfig = Field(default=CacheConfig(), description="copies of remote files")
    references: ReferencesConfig | None = Field(
        default=None, description="references for model.explicit: a folder, or {path, prepare}; null: none"
    )

    @field_validator("references", mode="before")
    @classmethod
    def _a_folder_is_enough(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _samples_are_whole_chunks(self) -> "DataConfig":
        if self.references is not None and self.sequence_length % CHUNK:
            raise ValueError(
                f"sequence_length is {self.sequence_length}; with references it must be a multiple of {CHUNK}, "
                "the tokens of a chunk"
            )
        return self

    @model_validator(mode="after")
    def _packed_for_these_samples(self) -> "DataConfig":
        for source in self.prepare.sources if self.prepare else []:
            if source.pack_length not in (None, self.sequence_length):
                raise ValueError(
                    f"prepare.sources: pack_length of {source.label!r} is {source.pack_length}, but sequence_length is "
                    f"{self.sequence_length}; they must be equal, so that a sample is a packed row"
                )
        return self

    @field_validator("mix")
    @classmethod
    def _weights_are_usable(cls, mix: dict[str, float] | None) -> dict[str, float] | None:
        if mix is not None:
            for source, weight in mix.items():
                if not 0 <= weight < float("inf"):
                    raise ValueError(f"weight of {source!r} is {weight}; it must be a number of at least 0")
            if not any(mix.values()):
                raise ValueError("all weights are 0; at least one must be above 0 (null mixes by size)")
        return mix
