"""Loads a trained model from a checkpoint into one process."""

from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep import PreparedFolder, Tokenizer
from model.network import LanguageModel, is_memory_name
from training.checkpoint.folder import RunState, latest_checkpoint, load_weights, read_run_state, stored_names
from training.checkpoint.manifest import verify
from training.config import RunConfig, parse_config
from training.errors import ConfigError


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in evaluation mode, with the configuration and state of its run."""

    net: LanguageModel
    config: RunConfig
    state: RunState
    path: Path  # of the checkpoint

    def tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """Return the tokenizer of the run's data folder, or of `folder` when the data has moved.

        Raises `ConfigError` when the model was trained with another one.
        """
        data = self.config.data
        place = folder or data.path
        tokenizer = PreparedFolder(place, data.cache).tokenizer()
        if self.state.tokenizer not in ("", tokenizer.fingerprint):
            raise ConfigError(
                f"--data: the tokenizer of {place} (fingerprint {tokenizer.fingerprint}) is not the one {self.path} "
                f"was trained with ({self.state.tokenizer}); pass --data FOLDER with the data of the run"
            )
        if tokenizer.vocab_size > self.config.model.vocab_size:
            raise ConfigError(
                f"--data: the tokenizer of {place} has {tokenizer.vocab_size:,} pieces, but the model of {self.path} "
                f"has {self.config.model.vocab_size:,} rows; pass --data FOLDER with the data of the run"
            )
        return tokenizer


def find_checkpoint(path: Path, field: str = "--checkpoint") -> Path:
    """Return `path` when it is a checkpoint, else the latest checkpoint of the run or `checkpoints/` folder `path`.

    field: name of the option, for messages. Raises `ConfigError` when there is no checkpoint.
    """
    if (path / "state.json").is_file():
        return path
    for folder in (path, path / "checkpoints"):
        if folder.is_dir() and (latest := latest_checkpoint(folder)):
            return latest
    what = "is no checkpoint and no run that has one" if path.exists() else "does not exist and is no checkpoint"
    raise ConfigError(f"{field}: {path} {what}; pass runs/NAME or a step-XXXXXXXX folder")


def load_model(path: Path, device: torch.device | None = None) -> LoadedModel:
    """Load the checkpoint at `path`, or the latest of a run's folder, after verifying it; device: default CPU.

    Raises `ConfigError` when there is none, `DamagedError` when it is damaged.
    """
    checkpoint = find_checkpoint(path)
    verify(checkpoint)
    state = read_run_state(checkpoint)
    config = parse_config(state.config)
    # the parameters of a recurrent memory show whether it was on; explicit memory has no parameters
    in_phase = any(phase.memory for phase in config.phases if phase.name == state.phase)
    explicit = config.model.explicit is not None and in_phase
    memory_on = explicit or any(is_memory_name(name) for name in stored_names(checkpoint))
    net = LanguageModel(config.model, memory_on=memory_on)
    load_weights(checkpoint, dict(net.named_parameters()))
    return LoadedModel(net.to(device or torch.device("cpu")).eval(), config, state, checkpoint)
