"""Checks that run before anything is written and before any process group is started."""

from pathlib import Path
from typing import Any

import torch

from data_prep import PreparedFolder
from model.network import LanguageModel
from training.checkpoint.loading import check_shapes
from training.checkpoint.manifest import DamagedError, check_sizes
from training.checkpoint.remote import local_copy
from training.checkpoint.run_state import ResumePoint, read_run_state
from training.config import RunConfig, parse_config, read_yaml
from training.distributed.ranks import RankInfo
from training.distributed.topology import check_world
from training.errors import ConfigError
from training.huggingface.weights import check_folder as check_hf_folder
from training.schedule import position
from training.streams import open_references, open_stream, open_validation


def check(config: RunConfig, info: RankInfo) -> ResumePoint:
    """Check everything a run needs to start, without writing; return the checkpoint from which it would continue.

    Raises:
        ConfigError, DataError, ModelError: the run cannot start; the message says what to change.
        TrainingError: checkpoints were saved and none is whole.
    """
    check_world(config, info)
    manifest = PreparedFolder(config.data.path, config.data.cache).manifest
    if manifest.tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the {manifest.tokenizer.vocab_size} pieces "
            f"of the tokenizer in {config.data.path}; set model.vocab_size to {manifest.tokenizer.vocab_size} or more"
        )
    train = open_stream(config, "train")
    for stream in (train, open_validation(config)):
        if stream is not None:
            open_references(config, stream)
    check_folder(config)
    resume = ResumePoint.of(config.run.folder)
    if resume.state is not None and resume.state.stream != train.fingerprint:
        raise ConfigError(
            f"data.path: the tokens in {config.data.path} (fingerprint {train.fingerprint}) are not those the run in "
            f"{config.run.folder} was trained on ({resume.state.stream}); restore that data, or choose another run.name"
        )
    # an `init_from` of a phase that has begun is not read again, and may have been deleted
    at = position(config.phases, config.data.sequence_length, resume.step)
    begun = at.phase_index + (at.phase_step > 0)
    for index, phase in enumerate(config.phases[begun:], begun):
        kind, _, path = phase.init_from.partition(":")
        if kind == "hf":
            check_hf_folder(Path(path), config.model, f"phases.{index}.init_from", phase.memory)
        if kind == "checkpoint":
            tokenizer = manifest.tokenizer.fingerprint
            check_origin(path, f"phases.{index}.init_from", config, phase.memory, tokenizer)
    return resume


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


def check_folder(config: RunConfig) -> None:
    """Raise `ConfigError` when the run's folder belongs to another configuration, or is not a run's folder."""
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


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return a sentence for each value that differs between two nested configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path} was {old!r}, is now {new!r}"]
