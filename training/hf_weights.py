"""A Hugging Face Llama folder as the start of a phase."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.hub import check_shapes, fuse
from model.parallel import TensorParallel
from training.errors import ConfigError


def check_folder(folder: Path, config: ModelConfig, field: str) -> None:
    """Raise `ConfigError` or `ModelError` when the folder's weights are unreadable or misfit; reads headers only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{field}: {path} is no readable safetensors file ({error}); fetch it again") from None
    if not shapes:
        raise ConfigError(f"{field}: {folder} holds no *.safetensors; give a Hugging Face folder")
    check_shapes(shapes, config)


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
