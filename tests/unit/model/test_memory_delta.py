"""The delta rule in chunks against its tokens one by one, in values and gradients, where rounding is hardest."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import build_model
from model.memory.delta import kernels
from model.memory.delta.chunks import by_chunk, carry, chunk_factors, compose, inverse
from model.memory.delta.module import DeltaMemory
from model.memory.delta.spec import chunk_length
from model.segments import spans
from tests.distributed.training_case import tiny_config
from tests.reference.small import DELTA, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread
from training.engine.products import choose_products

examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
BATCH, HEADS, WIDTH = 2, 2, 32
COSINE = 0.9  # of two keys


def drawn(segments: int, tokens: int, seed: int, width: int = WIDTH) -> list[Tensor]:
    """Bank, keys, values, beta and log alpha, fp64: similar keys, strong writes, decays near one, a few strong."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (BATCH, segments, HEADS, tokens)
    own = F.normalize(normal(*shape, width), dim=-1)
    keys = F.normalize(COSINE**0.5 * F.normalize(normal(width), dim=0) + (1 - COSINE) ** 0.5 * own, dim=-1)
    beta = torch.sigmoid(normal(*shape, 1) + 2)
    log_alpha = -torch.where(normal(*shape, 1) > 2.5, 5.0, F.softplus(normal(*shape, 1) - 7))
    return [normal(BATCH, HEADS, width, width), keys, normal(*shape, width), beta, log_alpha]


def token_by_token(
    bank: Tensor, keys: Tensor, values: Tensor, beta: Tensor, log_alpha: Tensor, continues: Tensor | None
) -> tuple[Tensor, Tensor]:
    entering = []
    for s in range(keys.size(1)):
        entering.append(bank)
        if continues is not None:
            bank = bank * continues[:, s, None, None, None]
        for t in range(keys.size(3)):
            k, v = keys[:, s, :, t, :, None], values[:, s, :, t, None, :]
            bank = log_alpha[:, s, :, t, :, None].exp() * bank
            bank = bank + beta[:, s, :, t, :, None] * k @ (v - k.mT @ bank)
    return torch.stack(entering, dim=1), bank


def factors_of(operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    length = chunk_length(*operands[0].shape[3:])
    return chunk_factors(*(by_chunk(x.transpose(2, 3).flatten(3), length, HEADS) for x in operands))


def carried(bank: Tensor, *operands: Tensor, continues: Tensor | None) -> tuple[Tensor, Tensor]:
    return carry(bank, factors_of(operands), operands[0].size(1), continues)


def composed(bank: Tensor, *operands: Tensor, continues: Tensor | None) -> tuple[Tensor, Tensor]:
    segments = operands[0].size(1)
    maps = compose(factors_of(operands), segments)
    transition, added = (x.unflatten(1, bank.shape[:2]).transpose(0, 1) for x in maps)
    entering = []
    for s in range(segments):
        entering.append(bank)
        kept = bank if continues is None else bank * continues[:, s, None, None, None]
        bank = transition[:, s] @ kept + added[:, s]
    return torch.stack(entering, dim=1), bank


WAYS = {"carried": carried, "composed": composed}


def value_and_gradients(way, inputs: list[Tensor], dtype: torch.dtype, continues: Tensor | None) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    entering, last = way(*leaves, continues=continues)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(dtype) for x in (entering, last)]
    loss = (entering * weights[0]).sum() + (last * weights[1]).sum()
    return [entering.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest number of each."""
    for name, a, b in zip(
        ("entering", "last", "bank", "keys", "values", "beta", "decay"), found, expected, strict=True
    ):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.double() / scale, b / scale, atol=tolerance, rtol=0, msg=f"{{}} {name}".format)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("segments", "tokens"), [(1, 1), (3, 5), (2, 64), (2, 150), (1, 320)])
def test_similar_keys_and_slow_decays_are_exact_in_fp32(way, segments, tokens):
    inputs = drawn(segments, tokens, seed=tokens)
    continues = torch.rand(BATCH, segments, generator=torch.Generator().manual_seed(1)) > 0.4
    expected = value_and_gradients(token_by_token, inputs, torch.float64, continues)
    assert_close(value_and_gradients(WAYS[way], inputs, torch.float32, continues), expected, 1e-5)


@examples
@given(segments=st.integers(1, 3), tokens=st.integers(1, 70), seed=st.integers(0, 99), packed=st.booleans())
def test_both_ways_are_the_recurrence(segments: int, tokens: int, seed: int, packed: bool) -> None:
    """In fp64, where only an error in the formulas is left."""
    inputs = drawn(segments, tokens, seed, width=5)
    continues = torch.rand(BATCH, segments, generator=torch.Generator().manual_seed(seed)) > 0.5 if packed else None
    expected = value_and_gradients(token_by_token, inputs, torch.float64, continues)
    for way in WAYS.values():
        assert_close(value_and_gradients(way, inputs, torch.float64, continues), expected, 1e-12)


@pytest.mark.parametrize("size", [4, 16, 256])
def test_the_inverse_of_a_hard_system_is_exact(size):
    _, keys, _, beta, _ = drawn(1, size, seed=size, width=64)
    system = (beta * (keys @ keys.mT)).tril(-1)
    exact = torch.linalg.inv(system + torch.eye(size).double())
    assert (inverse(system.float()).double() - exact).abs().max() < 1e-5


def recurrence_of_fla(**operands: Any) -> tuple[Tensor, Tensor]:
    """What `fla.ops.gated_delta_rule.chunk_gated_delta_rule` computes, by its documentation, token by token."""
    q, k, v, g, beta = (operands[name].float() for name in ("q", "k", "v", "g", "beta"))
    state, outputs = operands["initial_state"], []
    assert operands["output_final_state"] and state.is_contiguous() and state.dtype == torch.float32
    for t in range(q.size(1)):
        state = state * g[:, t].exp()[..., None, None]
        new = (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)) * beta[:, t, :, None]
        state = state + k[:, t].unsqueeze(-1) * new.unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * operands["scale"], state))
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_form_equals_the_chunks(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    net, ids = awake(build_model(tiny(DELTA), seed=3), seed=4), random_ids(1, 2, 16)
    documents = torch.tensor([[0] * 6 + [1] * 10, [0] * 4 + [1] * 9 + [2] * 3]) if packed else None

    def run() -> tuple[Tensor, list[Tensor]]:
        logits = net(ids, documents).logits
        return logits, list(torch.autograd.grad(logits.square().mean(), list(net.parameters())))

    expected = run()
    calls: list[int] = []

    def counted(**operands: Any) -> tuple[Tensor, Tensor]:
        calls.append(operands["k"].size(1))
        return recurrence_of_fla(**operands)

    monkeypatch.setattr("model.memory.delta.module.takes", lambda tokens, width: True)
    monkeypatch.setattr(kernels, "_kernel", lambda: counted)
    logits, gradients = run()
    # in each of two layers once a segment, and once more for the gradient of each bank that is read
    assert calls == [4] * 2 * (4 + 3)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=0)
    for a, b in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("triton", "sound"),
    [("3.3.1", True), ("3.4.0", False), ("3.6.0+git1a2b", False), ("3.7.0", False), ("3.7.1", True), ("4.0", True)],
)
def test_the_kernel_is_refused_where_triton_is_wrong(triton, sound):
    assert kernels.sound_on_hopper(triton) is sound


def test_without_a_gpu_the_kernel_is_not_taken():
    assert kernels.obstacle(torch.device("cpu")) == "it needs a CUDA device"
    assert not kernels.takes(torch.zeros(1, dtype=torch.bfloat16), 8)


@pytest.mark.slow
def test_chunks_are_one_graph():
    """Compiled without a break, forward and backward, with the same numbers."""
    inputs = drawn(2, 40, seed=1, width=8)
    continues = torch.tensor([[True, False], [True, True]])
    expected = value_and_gradients(composed, inputs, torch.float32, continues)
    found = value_and_gradients(torch.compile(composed, fullgraph=True), inputs, torch.float32, continues)
    assert_close(found, [x.double() for x in expected], 1e-5)


def test_the_kernel_is_part_of_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = build_model(tiny(DELTA, num_layers=1), seed=3).layers[0].memory
    assert isinstance(memory, DeltaMemory)
    span = next(spans(0, 8, 4, 1))
    shapes = [(2, 2, 8, 8), (2, 2, 4, 16), (2, 2, 4, 16), (2, 2, 4, 2), (2, 2, 4, 2)]  # bank and projections
    sources = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]

    def run(written: Any) -> list[Tensor]:
        bank, *projected = (x.clone().requires_grad_() for x in sources)
        entering, last = written(tuple(projected), span, bank)
        loss = entering.square().sum() + last.square().sum()
        return [entering, last, *torch.autograd.grad(loss, [bank, *projected])]

    expected = run(memory.written)
    monkeypatch.setattr("model.memory.delta.module.takes", lambda tokens, width: True)
    monkeypatch.setattr(kernels, "_kernel", lambda: recurrence_of_fla)
    monkeypatch.setattr(memory, "record_gate", lambda name, gate: None)
    graph = torch.compile(memory.written, fullgraph=True, backend="aot_eager_decomp_partition")
    for a, b in zip(run(graph), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_what_runs_is_said_and_only_bf16_on_a_gpu_takes_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    model = tiny(DELTA, hidden_size=512, num_heads=8, num_kv_heads=4).model_dump()  # heads 256 wide

    def start(device: str, **settings: Any) -> str:
        config = tiny_config(model=model, **settings)
        place = SimpleNamespace(device=torch.device(device))
        choose_products(config, config.phases[0].model_copy(update={"memory": False}), place)  # type: ignore[arg-type]
        path = config.model.memory.computed_by(config.model, place.device, config.training.precision, 1)
        assert path is not None
        return path

    assert "because it needs a CUDA device" in start("cpu", training__precision="bf16")
    assert not set_to
    monkeypatch.setattr(kernels, "obstacle", lambda device: None)
    assert start("cuda", training__precision="bf16") == "segments by flash-linear-attention's kernel"
    assert "because it has no fp32" in start("cuda")
    model["memory"]["heads"] = 1
    assert "heads are 512 wide" in start("cuda", training__precision="bf16")
    assert set_to == ["high", "highest", "high"]
