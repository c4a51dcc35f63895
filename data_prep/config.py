"""Settings of the data: what to read, how to cut it into tokens, how to mix it."""

import re
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SourceKind = Literal["python-stdlib", "text", "jsonl", "parquet"]
TokenType = Literal["uint16", "uint32"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIXES = re.compile(r"(\.(jsonl|json|parquet|txt|md|gz|zst))+$")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Settings):
    """One body of documents."""

    kind: SourceKind = Field(
        description="python-stdlib: the .py files of the running Python's standard library; "
        "text: *.txt and *.md, a file is a document; "
        "jsonl: *.jsonl, .jsonl.gz, .jsonl.zst, a line is a document; "
        "parquet: *.parquet, a row is a document"
    )
    path: Path | None = Field(
        default=None, description="file, folder (read recursively) or glob; not for python-stdlib"
    )
    name: str | None = Field(default=None, description="source name recorded in the shards; default: from kind or path")
    text_field: str = Field(default="text", min_length=1, description="JSONL key or Parquet column that holds the text")

    @field_validator("name")
    @classmethod
    def _name_fits_a_file_name(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError(f"is {name!r}; it becomes part of file names: use letters, digits, '.', '_' and '-'")
        return name

    @model_validator(mode="after")
    def _path_where_needed(self) -> "SourceConfig":
        if self.kind == "python-stdlib" and self.path is not None:
            raise ValueError(f"path is {str(self.path)!r}, but kind python-stdlib finds its own files: remove path")
        if self.kind != "python-stdlib" and self.path is None:
            raise ValueError(f"path is missing: kind {self.kind} needs a file, a folder or a glob")
        return self

    @property
    def label(self) -> str:
        """The source's name: `name`, else made from the path's last part, else the kind."""
        if self.name is not None:
            return self.name
        if self.path is None:
            return self.kind
        # A glob's last part ("*.jsonl") says nothing: its folder does.
        plain = [part for part in self.path.parts if not any(sign in part for sign in "*?[")]
        stem = _SUFFIXES.sub("", plain[-1]) if plain else ""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or self.kind


class TokenizerConfig(_Settings):
    """A tokenizer to load, or how to train one."""

    path: Path | None = Field(
        default=None,
        description="existing SentencePiece .model or Hugging Face tokenizer.json; null trains a new one",
    )
    vocab_size: int = Field(default=32_000, ge=260, description="pieces to train (259 are taken by bytes and specials)")
    train_bytes: int = Field(
        default=20_000_000, gt=0, description="bytes of text to train on, sampled from all sources"
    )


class PrepareConfig(_Settings):
    """Documents to tokens: everything that determines the shards."""

    sources: list[SourceConfig] = Field(min_length=1, description="where documents come from")
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="tokenizer to load or to train")
    valid_fraction: float = Field(default=0.01, ge=0, lt=1, description="share of documents held out, by document hash")
    shard_bytes: int = Field(default=268_435_456, ge=4096, description="token bytes a shard")
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
    on_error: Literal["fail", "skip"] = Field(default="fail", description="what a damaged document does")

    @model_validator(mode="after")
    def _names_are_unique(self) -> "PrepareConfig":
        labels = [source.label for source in self.sources]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"sources: two are called {label!r}; give each one its own `name`")
        return self

    @property
    def hash(self) -> str:
        """xxh3 (hex) of all settings that can change the output."""
        return xxhash.xxh3_64_hexdigest(self.model_dump_json(exclude={"workers"}).encode())


class DataConfig(_Settings):
    """The data of a training run."""

    path: Path = Field(description="prepared folder: manifest.json, shards and tokenizer")
    sequence_length: int = Field(ge=1, description="tokens a training sample")
    mix: dict[str, float] | None = Field(default=None, description="source name -> weight; null: by size")
    prepare: PrepareConfig | None = Field(default=None, description="how to make the folder when it is not there")

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
