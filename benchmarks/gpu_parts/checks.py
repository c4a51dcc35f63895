"""Is it right on the device: the same numbers as on a CPU, causal to the last bit, the same text however it is read."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_parts.common import Notes, Setting
from model import LanguageModel, MemoryConfig, ModelConfig, build_model
from model.generation import Sampling, generate, prefill
from tests.reference.small import awake

SEGMENT, VOCABULARY, STEPS = 16, 64, 10
# relative; the same ten steps with another CPU library, which sums in another order, come to 1e-7 and 1e-6
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-5, 1e-4
LOGIT_TOLERANCE = 1e-4  # of the largest logit
KINDS = {
    "none": MemoryConfig(kind="none"),
    "lm2 time": MemoryConfig(kind="lm2", flow="time", slots=8, heads=4),
    "delta": MemoryConfig(kind="delta", heads=4),
    "lm2 depth": MemoryConfig(kind="lm2", flow="depth", heads=4),
    "rmt": MemoryConfig(kind="rmt", slots=4, heads=4),
}


def exact_products() -> None:
    """fp32 products in fp32: no TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def small_model(memory: MemoryConfig) -> LanguageModel:
    """On the CPU, with a memory that is read and written from the first token."""
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=96,
        segment_length=SEGMENT,
        init_std=0.1,
        memory=memory,
    )
    return awake(build_model(config, seed=1), seed=2)


def random_tokens(seed: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens and documents, both int64 [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    return ids, (torch.rand(batch, length, generator=generator) < 0.05).long().cumsum(1)


def parity(setting: Setting, notes: Notes) -> None:
    """The first losses and gradient norms on a CPU and on the device, every kind of memory, fp32 without TF32."""
    exact_products()
    steps = 3 if setting.small else STEPS
    notes.add(steps=steps, loss_tolerance=LOSS_TOLERANCE, grad_norm_tolerance=NORM_TOLERANCE, kinds={})
    for name, memory in KINDS.items():
        net = small_model(memory)
        twin = copy.deepcopy(net).to(setting.device)
        here, there = first_steps(net, torch.device("cpu"), steps), first_steps(twin, setting.device, steps)
        loss, norm = (apart([step[i] for step in here], [step[i] for step in there]) for i in (0, 1))
        ok = loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE
        found = {"ok": ok, "loss_apart": loss, "grad_norm_apart": norm, "cpu": here, "device": there}
        notes.values["kinds"][name] = found
        notes.add(ok=all(kind["ok"] for kind in notes.values["kinds"].values()))


def first_steps(net: LanguageModel, device: torch.device, steps: int) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the first steps of AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95))
    out = []
    for step in range(steps):
        ids, documents = (x.to(device) for x in random_tokens(step, 4, 4 * SEGMENT + 1))
        logits = net(ids[:, :-1], documents[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        out.append((loss.item(), norm.item()))
    return out


def apart(expected: Sequence[float], found: Sequence[float]) -> float:
    """The largest relative difference; infinite where a number is none."""
    differences = [abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True)]
    return max(d if d == d else float("inf") for d in differences)


@torch.no_grad()
def causality(setting: Setting, notes: Notes) -> None:
    """Other tokens later change no logit before them, not one bit; text comes out the same however it is read."""
    exact_products()
    notes.add(causal={}, generation={}, logit_tolerance=LOGIT_TOLERANCE)
    for name, memory in KINDS.items():
        net = small_model(memory).to(setting.device)
        notes.values["generation"][name] = generation(net, small_model(memory), setting)
        notes.values["causal"][name] = {
            str(dtype).removeprefix("torch."): causal(net.to(dtype), setting.device)
            for dtype in (torch.float32, torch.bfloat16)
        }
        found = notes.values
        causal_everywhere = all(all(kind.values()) for kind in found["causal"].values())
        notes.add(ok=causal_everywhere and all(kind["ok"] for kind in found["generation"].values()))


def causal(net: LanguageModel, device: torch.device) -> bool:
    """With packed documents and without, changed inside a segment, at a boundary and after it."""
    ids, documents = (x.to(device) for x in random_tokens(7, 2, 4 * SEGMENT + 5))
    for packed in (None, documents):
        expected = net(ids, packed).logits
        for cut in (SEGMENT - 3, SEGMENT, 2 * SEGMENT + 1, 4 * SEGMENT + 2):
            changed = ids.clone()
            changed[:, cut:] = (ids[:, cut:] + 1) % VOCABULARY
            logits = net(changed, packed).logits
            if not torch.equal(logits[:, :cut], expected[:, :cut]) or torch.equal(logits[:, cut:], expected[:, cut:]):
                return False
    return True


def generation(net: LanguageModel, on_cpu: LanguageModel, setting: Setting) -> dict[str, Any]:
    """Greedy text token by token: as one forward over all of it predicts, and as a CPU writes it."""
    prompt, _ = random_tokens(8, 2, SEGMENT + 5)
    ids, tokens = prompt.to(setting.device), 8 if setting.small else 2 * SEGMENT
    produced = torch.stack(list(generate(net, ids, tokens, Sampling(temperature=0))), dim=1)
    expected = torch.stack(list(generate(on_cpu, prompt, tokens, Sampling(temperature=0))), dim=1)
    whole = torch.cat((ids, produced), dim=1)
    logits = net(whole).logits
    as_predicted = torch.equal(logits[:, ids.size(1) - 1 : -1].argmax(dim=-1), produced)
    state, parts = None, []
    for part in whole.split(7, dim=1):
        last, state = prefill(net, part, state)
        parts.append(last)
    ends = [min(i + 7, whole.size(1)) - 1 for i in range(0, whole.size(1), 7)]
    difference = float((torch.stack(parts, dim=1) - logits[:, ends]).abs().max() / logits.abs().max())
    as_on_cpu = torch.equal(produced.cpu(), expected)
    ok = as_predicted and as_on_cpu and difference <= LOGIT_TOLERANCE
    return {"ok": ok, "as_predicted": as_predicted, "as_on_cpu": as_on_cpu, "logits_apart": difference}
