"""Initial weights. They depend on the seed and the parameter's name alone, so no topology and no phase changes them.

A weight is drawn row after row from one generator, and a rank allocates only its own shard. It jumps over the rows of
the tensor-parallel ranks before it (`model.generator_jump`). The others' columns of a row are too few for a jump: a
rank moves the generator past them, which costs less than half of drawing them, or draws and discards them. As many
threads as torch uses draw different weights at the same time.
"""

import hashlib
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.generator_jump import jump
from model.memory.interface import Memory
from model.parallel import TensorParallel, is_sharded

Draw = Callable[[Tensor, torch.Generator], object]  # fills a contiguous tensor

GRAIN = 16  # torch draws normal fp32 numbers 16 at a time from as many 32-bit numbers of the generator
BLOCK = 1 << 17  # numbers that are drawn at once; they fit into the processor's cache
FEW = 1 << 12  # up to this many numbers of a row are drawn and discarded, because moving past them takes longer
JUMP = 1 << 21  # from this many numbers on, a jump (2 ms; the first takes 30 ms) takes less time than moving past them
SCRATCH = 1 << 15  # 64-bit numbers that are drawn at once to be discarded; they fit into the processor's cache


def initialize(
    module: nn.Module,
    prefix: str,
    config: ModelConfig,
    seed: int,
    tp: TensorParallel,
    loaded_later: Container[str] = frozenset(),
) -> None:
    """Fill every parameter of `module`, whose canonical name in the whole model is `prefix`.

    Each rank draws its own shard of the tensor that one rank would draw, so the weights do not depend on the number of
    ranks. Parameters named in `loaded_later` are filled with NaN instead, so that a missing load shows at once.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, torch.no_grad():
        filled = []
        for child_name, child in module.named_modules():
            for name, parameter in child.named_parameters(recurse=False):
                owner, local = _owner(module, child_name, name)
                full_name = ".".join(part for part in (prefix, child_name, name) if part)
                values = parameter.detach()
                if full_name in loaded_later:
                    values.fill_(torch.nan)
                    continue
                drawn_as = owner.drawn_as(full_name) if isinstance(owner, Memory) else full_name
                generator = torch.Generator().manual_seed(_seed(seed, drawn_as))
                if isinstance(owner, Memory):
                    draw: Draw = partial(_draw_memory, owner, local)
                else:
                    draw = partial(_draw_backbone, _backbone_std(full_name, parameter, config, tp))
                ranks, rank = (tp.size, tp.rank) if is_sharded(parameter) else (1, 0)
                dim = parameter.partition_dim if is_sharded(parameter) else 0  # type: ignore[attr-defined]
                filled.append(pool.submit(_fill, values, draw, generator, dim, rank, ranks))
        for one in filled:
            one.result()


def _fill(values: Tensor, draw: Draw, generator: torch.Generator, dim: int, rank: int, ranks: int) -> None:
    """Fill `values`, shard `rank` of `ranks` along `dim`, with its part of the whole tensor that `draw` makes."""
    own = values.size(dim)
    if values.dim() != 2 or values.size(1) % GRAIN:  # a shard could begin or end inside a grain
        whole = torch.empty([size * ranks if d == dim else size for d, size in enumerate(values.shape)])
        draw(whole, generator)
        values.copy_(whole.narrow(dim, rank * own, own))
        return
    begin, first = generator.get_state(), torch.empty(1, values.size(1))
    draw(first, generator)
    if torch.equal(generator.get_state(), begin):  # `draw` took no random numbers, so all rows are equal
        values.copy_(first)
        return
    generator.set_state(begin)
    first_column, columns = (rank * own, own * ranks) if dim == 1 else (0, values.size(1))
    if dim == 1 and columns - own > FEW:
        _skip(_unused(first_column), generator)
        others = _unused(columns - own)
        for row in values.split(1):
            draw(row, generator)
            _skip(others, generator)
        return
    before = rank * own * columns if dim == 0 else 0
    if before < JUMP or not jump(generator, before):
        _skip(_unused(before), generator)
    for rows in values.split(max(1, BLOCK // columns)):
        if dim == 0:
            draw(rows, generator)
        else:
            drawn = torch.empty(len(rows), columns)
            draw(drawn, generator)
            rows.copy_(drawn.narrow(1, first_column, own))


def _unused(count: int) -> list[Tensor]:
    """Return int64 tensors whose filling takes `count` (even) 32-bit numbers from a generator."""
    full, rest = divmod(count // 2, SCRATCH)
    scratch = torch.empty(SCRATCH if full else rest, dtype=torch.int64)
    return [scratch] * full + [scratch[:rest]]


def _skip(unused: list[Tensor], generator: torch.Generator) -> None:
    """Move `generator` past the numbers that filling `unused` takes."""
    for part in unused:
        part.random_(-(2**63), None, generator=generator)  # any int64


def _owner(module: nn.Module, child_name: str, name: str) -> tuple[nn.Module, str]:
    """Return the memory module that a parameter belongs to, else its own module, and its name there."""
    parts = child_name.split(".") if child_name else []
    for depth in range(len(parts) + 1):
        candidate = module.get_submodule(".".join(parts[:depth]))
        if isinstance(candidate, Memory):
            return candidate, ".".join([*parts[depth:], name])
    return module, name


def _draw_backbone(std: float | None, out: Tensor, generator: torch.Generator) -> None:
    if std is None:
        out.fill_(1.0)
    else:
        out.normal_(generator=generator).mul_(std)


def _draw_memory(owner: Memory, name: str, out: Tensor, generator: torch.Generator) -> None:
    out.copy_(owner.initial_value(name, tuple(out.shape), generator))


def _backbone_std(name: str, parameter: nn.Parameter, config: ModelConfig, tp: TensorParallel) -> float | None:
    """Return the standard deviation of a matrix, or None for a norm, whose initial weights are ones."""
    if parameter.dim() == 1:
        return None
    split = is_sharded(parameter) and parameter.partition_dim == 1  # type: ignore[attr-defined]
    # an embedding [V, D] gets the standard deviation of a head, which may share its weight
    std = config.initial_std(parameter.size(1) * (tp.size if split else 1))
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        std /= (2 * config.num_layers) ** 0.5  # so that the residual stream's variance does not grow with depth
    return std


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
