"""A Hugging Face folder as the beginning of a configuration: its `model:` section, and the proof of its logits."""

from pathlib import Path
from typing import Any

import torch
import yaml

from model.config import ModelConfig
from model.errors import ModelError
from model.llama_config import from_llama
from model.network import LanguageModel
from training.errors import ConfigError
from training.huggingface.logits import largest_difference, load_in_transformers
from training.huggingface.weights import WeightFolder, check_folder, load_folder

DEFAULT_SEGMENT = 2048


def model_section(folder: Path, segment_length: int | None = None, memory: str = "none") -> dict[str, Any]:
    """The `model:` section of a run that begins with `folder`.

    Args: segment_length: None: what the folder says, or the model's longest context up to 2048; memory: kind, with
    lm2 also lm2-depth.
    Raises `ConfigError` or `ModelError`.
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
    if memory != "none":
        kind, _, flow = memory.partition("-")
        fields["memory"] = {"kind": kind} | ({"flow": flow} if flow else {})
    config = ModelConfig(**fields)  # what cannot be is said here, not by the run
    return config.model_dump(mode="json", exclude_defaults=True)


def section_text(section: dict[str, Any], folder: Path) -> str:
    """As YAML, to be pasted into a run's configuration."""
    text = yaml.safe_dump({"model": section}, sort_keys=False)
    origin = yaml.safe_dump(f"hf:{folder.resolve()}", width=9999).splitlines()[0]
    return f"{text}# and in the first phase:  init_from: {origin}\n"


def prove(folder: Path, length: int) -> float:
    """The largest logit difference between the folder's Llama in our model and in Transformers, over `length` tokens.

    Raises `ConfigError` or `ModelError`.  Nothing in the folder is executed.
    """
    if WeightFolder(folder, "FOLDER").ours:
        raise ConfigError(f"FOLDER: {folder} is an export with code of its own; launchers/export.py has proven it")
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
