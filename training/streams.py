"""Opens the token streams and the references that a run reads."""

from data_prep import PreparedFolder, TokenStream
from training.config import RunConfig
from training.errors import ConfigError
from training.references import ReferenceReader
from training.schedule import position


def open_stream(config: RunConfig, split: str) -> TokenStream:
    """Open the stream of `split`: train (mixed by phase, shuffled) or valid (in order). Raises `DataError`."""
    data, length, seed = config.data, config.data.sequence_length, config.run.seed
    checksums = data.checksums == "first touch"
    references = data.references.path if data.references else None
    if split == "valid":
        return TokenStream(
            data.path,
            split="valid",
            sequence_length=length,
            seed=seed,
            shuffle=False,
            checksums=checksums,
            cache=data.cache,
            references=references,
        )
    mix, step = [], 0
    for phase in config.phases:
        first = position(config.phases, length, step).samples
        mix.append((first, phase.mix if phase.mix is not None else data.mix))
        step += phase.steps
    return TokenStream(
        data.path,
        split="train",
        sequence_length=length,
        seed=seed,
        mix=mix,
        shuffle_shards=data.shuffle_shards,
        checksums=checksums,
        cache=data.cache,
        references=references,
    )


def open_validation(config: RunConfig) -> TokenStream | None:
    """Open the validation stream; None when the data was prepared with `data.prepare.valid_fraction: 0`.

    Raises `DataError` when validation documents were asked for and there are none.
    """
    manifest = PreparedFolder(config.data.path, config.data.cache).manifest
    held_out = any(entry.split == "valid" for entry in manifest.shards)
    meant = config.data.prepare is not None and config.data.prepare.valid_fraction > 0
    return open_stream(config, "valid") if held_out or meant else None


def open_references(config: RunConfig, stream: TokenStream) -> ReferenceReader | None:
    """Open the references retrieved for the chunks of `stream`; None for a model without explicit memory.

    Raises `ConfigError` when the stored references are longer than `model.explicit.reference_length`.
    """
    explicit = config.model.explicit
    if explicit is None or stream.table is None:
        return None
    if stream.table.store.length > explicit.reference_length:
        raise ConfigError(
            f"model.explicit.reference_length: {explicit.reference_length}, but references in "
            f"{stream.table.store.folder} have up to {stream.table.store.length} tokens; set it to "
            f"{stream.table.store.length}"
        )
    return ReferenceReader(stream.table.store, explicit)
