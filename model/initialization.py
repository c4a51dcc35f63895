"""Initial weights: a function of (seed, parameter name) alone, so no topology and no phase changes them."""

import hashlib

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.memory.interface import Memory
from model.parallel import TensorParallel, is_sharded


def initialize(module: nn.Module, prefix: str, config: ModelConfig, seed: int, tp: TensorParallel) -> None:
    """Fill every parameter of `module`, whose canonical name in the whole model is `prefix`.

    Each rank draws the full tensor and keeps its slice: the weights do not depend on the number of ranks.
    """
    for child_name, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False):
            owner, local = _owner(module, child_name, name)
            full_name = ".".join(part for part in (prefix, child_name, name) if part)
            shape = list(parameter.shape)
            if is_sharded(parameter):
                shape[parameter.partition_dim] *= tp.size  # type: ignore[attr-defined]
            drawn_as = owner.drawn_as(full_name) if isinstance(owner, Memory) else full_name
            generator = torch.Generator().manual_seed(_seed(seed, drawn_as))
            if isinstance(owner, Memory):
                full = owner.initial_value(local, tuple(shape), generator)
            else:
                full = _backbone_value(full_name, tuple(shape), config, generator)
            with torch.no_grad():
                parameter.copy_(tp.shard(full, parameter))


def _owner(module: nn.Module, child_name: str, name: str) -> tuple[nn.Module, str]:
    """The memory module a parameter belongs to and its name there; the child itself elsewhere."""
    parts = child_name.split(".") if child_name else []
    for depth in range(len(parts) + 1):
        candidate = module.get_submodule(".".join(parts[:depth]))
        if isinstance(candidate, Memory):
            return candidate, ".".join([*parts[depth:], name])
    return module, name


def _backbone_value(name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:  # norms
        return torch.ones(shape)
    std = config.initial_std(shape[1])  # an embedding [V, D] gets the spread of the head that may share its weight
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        std /= (2 * config.num_layers) ** 0.5  # the residual stream's variance does not grow with depth
    return torch.randn(shape, generator=generator) * std


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
