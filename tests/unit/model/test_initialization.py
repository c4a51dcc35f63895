"""Initial weights drawn in parts are those drawn in one span; what is loaded later is not drawn."""

import pytest
import torch
from torch import Tensor

from model import LanguageModel, build_model
from model.generator_jump import WORDS, jump
from model.initialization import _fill, _skip, _unused
from model.memory.interface import Memory
from tests.reference.small import KINDS, tiny

SEED = 5
ROWS_OF_16 = {"hidden_size": 64, "ffn_size": 96, "vocab_size": 48}


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_draws_every_weight_as_one_tensor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 128 numbers the weights are those of a draw in one span."""
    config = tiny(KINDS[kind], **ROWS_OF_16)
    at_once = {name: p.detach().clone() for name, p in build_model(config, seed=SEED).named_parameters()}
    monkeypatch.setattr("model.initialization.BLOCK", 128)
    in_blocks = build_model(config, seed=SEED)
    assert all(torch.equal(p.detach(), at_once[name]) for name, p in in_blocks.named_parameters())


def test_skipping_passes_as_many_numbers_as_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.initialization.SCRATCH", 24)
    drawn, skipped = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    torch.randn(160, generator=drawn)
    _skip(_unused(160), skipped)
    assert torch.equal(torch.randn(32, generator=drawn), torch.randn(32, generator=skipped))


@pytest.mark.parametrize("count", [0, 2, WORDS, 5 * WORDS - 2, 19_936, 19_938, 3_000_000])
@pytest.mark.parametrize("seed", [0, 2**62 + 12_345])
def test_a_jump_ends_where_passing_the_numbers_does(count: int, seed: int) -> None:
    passed, jumped = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    _skip(_unused(count), passed)
    assert jump(jumped, count)
    assert torch.equal(torch.randn(4 * WORDS, generator=passed), torch.randn(4 * WORDS, generator=jumped))


def test_only_a_generator_that_has_drawn_nothing_jumps() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.randn(16, generator=generator)
    before = generator.get_state()
    assert not jump(generator, 1000)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rank", range(3))
def test_every_way_past_the_other_ranks_leads_to_the_same_shard(
    rank: int, dim: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows by a jump or without, columns passed or dropped."""
    monkeypatch.setattr("model.initialization.JUMP", limit)
    monkeypatch.setattr("model.initialization.FEW", limit)
    monkeypatch.setattr("model.initialization.BLOCK", 200)
    shape, own = (36, 96), {0: (12, 96), 1: (36, 32)}[dim]

    def draw(out: Tensor, generator: torch.Generator) -> None:
        out.normal_(generator=generator)

    whole, values = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)), torch.empty(own)
    _fill(values, draw, torch.Generator().manual_seed(SEED), dim, rank, 3)
    assert torch.equal(values, whole.narrow(dim, rank * own[dim], own[dim]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_a_memory_s_rows_do_not_depend_on_the_rows_drawn_with_them(kind: str) -> None:
    """What `Memory.initial_value` promises: a part's numbers are those of the whole value."""
    config = tiny(KINDS[kind], **ROWS_OF_16)
    memory = next(m for m in build_model(config).modules() if isinstance(m, Memory))
    for name, parameter in memory.named_parameters():
        if parameter.dim() == 2:
            generator = torch.Generator().manual_seed(2)
            parts = [memory.initial_value(name, (1, parameter.size(1)), generator) for _ in range(parameter.size(0))]
            whole: Tensor = memory.initial_value(name, tuple(parameter.shape), torch.Generator().manual_seed(2))
            assert torch.equal(torch.cat(parts), whole), name


def test_what_is_loaded_later_is_not_drawn_and_shows_until_then() -> None:
    config = tiny(KINDS["lm2"])
    drawn = build_model(config, seed=SEED)
    net = LanguageModel(config)
    net.initialize(SEED, loaded_later={"layers.0.mlp.down.weight", "final_norm.weight"})
    for name, parameter in net.named_parameters():
        if name in ("layers.0.mlp.down.weight", "final_norm.weight"):
            assert parameter.isnan().all()
        else:
            assert torch.equal(parameter, drawn.get_parameter(name))
