"""Checks that run before anything is written and before any process group is started."""

from pathlib import Path
from typing import Any

import torch

from data_prep import PreparedFolder, TokenStream
from model.network import LanguageModel
from training.checkpoint.folder import check_shapes, latest_checkpoint, read_run_state
from training.checkpoint.manifest import DamagedError, check_sizes, step_of
from training.checkpoint.remote import local_copy
from training.config import RunConfig, parse_config, read_yaml
from training.distributed.ranks import RankInfo
from training.distributed.topology import check_world
from training.errors import ConfigError
from training.huggingface.weights import check_folder as check_hf_folder
from training.references import ReferenceReader
from training.schedule import position


def check(config: RunConfig, info: RankInfo) -> None:
    """Check everything a run needs to start; write nothing.

    Raises:
        ConfigError, DataError, ModelError: the run cannot start; the message says what to change.
    """
    check_world(config, info)
    manifest = PreparedFolder(config.data.path, config.data.cache).manifest
    if manifest.tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the {manifest.tokenizer.vocab_size} pieces "
            f"of the tokenizer in {config.data.path}; set model.vocab_size to {manifest.tokenizer.vocab_size} or more"
        )
    for stream in (open_stream(config, "train"), open_validation(config)):
        if stream is not None:
            open_references(config, stream)
    check_folder(config)
    begun = _begun(config)
    for index, phase in enumerate(config.phases[begun:], begun):
        kind, _, path = phase.init_from.partition(":")
        if kind == "hf":
            check_hf_folder(Path(path), config.model, f"phases.{index}.init_from", phase.memory)
        if kind == "checkpoint":
            tokenizer = manifest.tokenizer.fingerprint
            check_origin(path, f"phases.{index}.init_from", config, phase.memory, tokenizer)


def _begun(config: RunConfig) -> int:
    """Return how many phases the run's latest checkpoint has begun.

    Their `init_from` is not checked again, because it is not read again and may have been deleted.
    """
    latest = latest_checkpoint(config.run.folder / "checkpoints")
    if latest is None:
        return 0
    at = position(config.phases, config.data.sequence_length, step_of(latest))
    return at.phase_index + (at.phase_step > 0)


def check_origin(address: str, field: str, config: RunConfig, memory: bool, tokenizer: str) -> None:
    """Raise `ConfigError` when the checkpoint at `address` is missing, damaged, or of another model or tokenizer.

    Args:
        address: path or URL of the checkpoint.
        field: name of the configuration field, for messages.
        config: the run.
        memory: whether the phase that starts from it has memory on.
        tokenizer: fingerprint of the run's tokenizer.
    """
    path = local_copy(address, field)
    try:
        check_sizes(path)
        trained_with = read_run_state(path).tokenizer
        if trained_with not in ("", tokenizer):
            raise ConfigError(
                f"{field}: {address} was trained with another tokenizer (fingerprint {trained_with}) than the data in "
                f"{config.data.path} has ({tokenizer}); prepare the data with the checkpoint's tokenizer "
                "(data.prepare.tokenizer.path)"
            )
        with torch.device("meta"):
            check_shapes(path, LanguageModel(config.model, memory_on=memory))
    except DamagedError as error:
        raise ConfigError(
            f"{field}: {error}; pass a whole checkpoint, such as RUN/checkpoints/step-XXXXXXXX: copy it again, or use "
            "another"
        ) from None


def open_stream(config: RunConfig, split: str) -> TokenStream:
    """Open the stream of `split`: train (mixed by phase, shuffled) or valid (in order).  Raises `DataError`."""
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


def check_folder(config: RunConfig) -> None:
    """Raise `ConfigError` when the run's folder belongs to another configuration or was trained on other data."""
    folder = config.run.folder
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.name: {folder} is a file, but must be the run's folder; choose another run.name")
    if not saved.exists():
        # files that submission leaves, and those of a start that was killed before it wrote config.yaml
        expected = ("lock", "log", "slurm", "submit.sbatch", "evaluate.sbatch")
        others = folder.iterdir() if folder.exists() else ()
        if any(path.name not in expected and not path.name.startswith(".config.yaml") for path in others):
            raise ConfigError(
                f"run.name: {folder} is not empty and has no config.yaml, so it is not a run's folder; choose another "
                "run.name"
            )
        return
    try:
        earlier = parse_config(read_yaml(saved))
    except ConfigError as error:
        raise ConfigError(
            f"run.name: {saved} is not a valid configuration ({error}); choose another run.name, or delete the folder"
        ) from None
    differences = list(_differences(earlier.identity(), config.identity()))
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise ConfigError(
            f"run.name: {folder} belongs to another configuration ({shown}); "
            "choose another run.name, or delete the folder"
        )
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is not None:
        stream = read_run_state(checkpoint).stream
        if stream != (now := open_stream(config, "train").fingerprint):
            raise ConfigError(
                f"data.path: the tokens in {config.data.path} (fingerprint {now}) are not those the run in {folder} "
                f"was trained on ({stream}); restore that data, or choose another run.name"
            )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return a sentence for each value that differs between two nested configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path} was {old!r}, is now {new!r}"]
