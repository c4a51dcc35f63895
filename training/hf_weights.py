"""A Hugging Face Llama folder as the start of a phase."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.hub import fuse
from model.parallel import TensorParallel


def load_backbone(
    parameters: dict[str, nn.Parameter],
    folder: Path,
    config: ModelConfig,
    tp: TensorParallel,
    write: Callable[[dict[str, Tensor]], None],
) -> None:
    """Read every `*.safetensors` of `folder` and hand this rank's slices to `write`, by canonical name.

    Raises `ModelError` when names or shapes do not fit the configuration.
    """
    given: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        given |= load_file(path)
    whole = fuse(given, config)
    write({name: tp.shard(whole[name].float(), p) for name, p in parameters.items() if name in whole})
