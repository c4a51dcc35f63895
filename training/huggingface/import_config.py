"""Makes a `model:` section from a Hugging Face folder, and proves that the logits are equal."""

from pathlib import Path
from typing import Any

import torch

from data_prep.yaml_reader import write_yaml
from model.config import ModelConfig
from model.errors import ModelError
from model.llama_config import from_llama
from model.memory.registry import choices
from model.network import LanguageModel
from training.errors import ConfigError
from training.huggingface.logits import largest_difference, load_in_transformers
from training.huggingface.weights import WeightFolder, check_folder, load_folder

DEFAULT_SEGMENT = 2048


def model_section(folder: Path, segment_length: int | None = None, memory: str | None = None) -> dict[str, Any]:
    """Return the `model:` section of a run that starts from `folder`.

    Args:
        folder: a Hugging Face folder.
        segment_length: tokens of a segment; None: that of the folder, or the model's longest context, at most 2048.
        memory: kind of memory to add, one of `model.memory.registry.choices`; None: that of the folder.

    Raises:
        ConfigError, ModelError: the folder cannot be read or is of a model that is not supported.
    """
    weights = WeightFolder(folder, "FOLDER")
    given = weights.config
    if given is None:
        raise ConfigError(f"FOLDER: {folder} has no config.json; give a Hugging Face folder")
    if isinstance(given.get("model"), dict):  # written by launchers/export.py
        fields = dict(given["model"])
    else:
        fields = from_llama(given)
        longest = given.get("max_position_embeddings") or DEFAULT_SEGMENT
        if type(longest) is not int or longest < 1:
            raise ConfigError(
                f"FOLDER: {folder}: config.json: max_position_embeddings is {longest!r}; it must be a number"
            )
        fields["segment_length"] = min(DEFAULT_SEGMENT, longest)
        try:
            weights.check_plain()
            if fields["tie_embeddings"]:
                weights.check_head()
        except ModelError as error:
            raise ModelError(f"FOLDER: {folder}: {error}") from None
    if segment_length is not None:
        fields["segment_length"] = segment_length
    if memory is not None:
        fields["memory"] = dict(choices()[memory].selects)
    config = ModelConfig(**fields)  # validates here, before a run uses the section
    return config.model_dump(mode="json", exclude_defaults=True)


def section_text(section: dict[str, Any], folder: Path) -> str:
    """Return the section as YAML that can be pasted into a run's configuration."""
    text = write_yaml({"model": section})
    origin = write_yaml([f"hf:{folder.resolve()}"]).removeprefix("- ").rstrip("\n")
    return f"{text}# and in the first phase:  init_from: {origin}\n"


def prove(folder: Path, length: int) -> float:
    """Return the largest logit difference between this project's and Transformers' model of the folder's Llama.

    Both read `length` random tokens. Nothing in the folder is executed. Raises `ConfigError` or `ModelError`.
    """
    if WeightFolder(folder, "FOLDER").ours:
        raise ConfigError(
            f"FOLDER: {folder} was written by launchers/export.py, which has compared its logits; leave out --prove"
        )
    config = ModelConfig(**model_section(folder, segment_length=length))
    check_folder(folder, config, "FOLDER")
    with torch.device("meta"):
        net = LanguageModel(config)
    net = net.to_empty(device="cpu").eval()
    own = dict(net.named_parameters())

    def write(values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    load_folder(dict(own), folder, config, net.tp, write)
    return largest_difference(net, load_in_transformers(folder), [length])
