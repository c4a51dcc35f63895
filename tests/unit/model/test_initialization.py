"""Initial weights drawn in parts are those drawn in one span; what is loaded later is not drawn."""

import pytest
import torch
from torch import Tensor

from model import LanguageModel, build_model
from model.initialization import _skip, _unused
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
