"""How fast it trains: the published sizes in bf16, step by step as a run makes them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_parts.common import Notes, Setting, TooLarge, has_deepspeed, random_step, seconds
from benchmarks.gpu_parts.profile import profile
from benchmarks.gpu_parts.report import SHIPPED
from model import LanguageModel
from model.cost import flops_per_token
from training.batches import StepBatch
from training.config import RunConfig, load_config
from training.devices import peak_flops
from training.topology import RankInfo, initialize

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# micro-batches of a step: the published runs make 128, among which the optimizer's share all but vanishes
ACCUMULATED = 4
WARMUP, ROUNDS, LEARNING_RATE = 2, 5, 1e-4
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_size": 128,
    "rope_scaling": "null",
}
Step = Callable[[StepBatch], float]


@dataclass(frozen=True)
class Case:
    """A configuration with samples of `length` tokens, attention and memory over `segment` of them.

    samples: of a micro-batch; halved until it fits the device.
    """

    file: str
    phase: int
    length: int
    segment: int
    samples: int
    plain: bool = False  # a plain PyTorch loop in the engine's place

    def config(self, small: bool, samples: int, recompute: str) -> RunConfig:
        length, segment = (self.length // 64, self.segment // 64) if small else (self.length, self.segment)
        values: dict[str, Any] = {
            "data.sequence_length": length,
            "model.segment_length": segment,
            "training.micro_batch_size": samples,
            "training.activation_checkpointing": recompute,
        }
        with_memory = self.file.startswith("lm2")
        values |= {f"phases.{i}.tokens_per_step": samples * length * ACCUMULATED for i in range(1 + with_memory)}
        if small:
            values |= {f"model.{name}": value for name, value in SMALL.items()}
            values |= {"model.memory.slots": 8, "model.memory.heads": 4} if with_memory else {}
        return load_config(CONFIGS / self.file, [f"{key}={value}" for key, value in values.items()])


CASES = {
    "llama": Case("llama3.2_1.2b.yaml", phase=0, length=2048, segment=2048, samples=8),
    "lm2": Case("lm2_1.7b.yaml", phase=1, length=4096, segment=2048, samples=4),
    "lm2-off": Case("lm2_1.7b.yaml", phase=0, length=4096, segment=2048, samples=4),
    "llama-plain": Case("llama3.2_1.2b.yaml", phase=0, length=2048, segment=2048, samples=8, plain=True),
}


def train(setting: Setting, notes: Notes, name: str, samples: int | None, recompute: str) -> None:
    """One case in all its variants.  Raises `TooLarge` when its micro-batch does not fit the device."""
    case = CASES[name]
    samples = samples or (2 if setting.small else case.samples)
    try:
        measure(case, setting, notes, samples, recompute)
    except torch.cuda.OutOfMemoryError:
        if samples == 1:
            raise
        raise TooLarge(samples // 2) from None


def measure(case: Case, setting: Setting, notes: Notes, samples: int, recompute: str) -> None:
    config = case.config(setting.small, samples, recompute)
    plain = case.plain or not has_deepspeed()
    batch = random_step(ACCUMULATED, samples, config.data.sequence_length, config.model.vocab_size)
    step, net = plain_step(config, case.phase, setting) if plain else engine_step(config, case.phase)
    memory = config.phases[case.phase].memory
    tokens = samples * config.data.sequence_length * ACCUMULATED
    notes.add(
        loop="plain PyTorch" if plain else "engine (DeepSpeed)",
        parameters=sum(p.numel() for p in net.parameters()),
        memory=config.model.memory.kind if memory else "none",
        tokens_per_sample=config.data.sequence_length,
        segment_length=config.model.segment_length,
        samples_per_micro_batch=samples,
        micro_batches=ACCUMULATED,
        recompute=recompute,
        flops_per_token=flops_per_token(config.model, memory),
        variants={},
    )
    for name, prepare in variants(net, memory, setting):
        prepare()
        try:
            found = rates(step, batch, tokens, notes.values["flops_per_token"], setting)
        except RuntimeError as error:
            if name == SHIPPED:
                raise
            found = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        notes.values["variants"][name] = found
        notes.add()
        if name == SHIPPED:
            notes.add(ok=all(loss == loss for loss in found["losses"]))
            notes.add(profile=profile(lambda: step(batch), setting.device))
    notes.add(compiler=what_dynamo_did())


def variants(net: LanguageModel, memory: bool, setting: Setting) -> list[tuple[str, Callable[[], None]]]:
    """As shipped; with TF32, which only the memory's fp32 products can use; with decoder layers compiled as well."""

    def compile_layers() -> None:
        backend = "inductor" if setting.device.type == "cuda" else "aot_eager"  # needs no C++ compiler
        for layer in net.layers:
            layer.compile(backend=backend)

    tf32 = [("tf32", lambda: torch.set_float32_matmul_precision("high"))] if memory else []
    return [(SHIPPED, lambda: None), *tf32, ("compiled", compile_layers)]


def rates(step: Step, batch: StepBatch, tokens: int, flops: float, setting: Setting) -> dict[str, Any]:
    """Median time of a step and what follows from it."""
    cuda = setting.device.type == "cuda"
    rounds = 2 if setting.small else ROUNDS
    losses: list[float] = []

    def once() -> None:
        losses.append(step(batch))

    first, *_ = [seconds(once, setting.device) for _ in range(1 if setting.small else WARMUP)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [seconds(once, setting.device) for _ in range(rounds)]
    speed = tokens / statistics.median(times)
    peak = peak_flops(setting.device, "bf16")
    return {
        "tokens_per_second": speed,
        "mfu": flops * speed / peak if peak else None,
        "tflops": flops * speed / 1e12,
        "step_seconds": times,
        "first_step_seconds": first,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        "losses": losses,
    }


def what_dynamo_did() -> dict[str, Any]:
    """Graphs and where they broke: each break is a return to Python."""
    from torch._dynamo.utils import counters

    breaks = sorted(counters["graph_break"].items(), key=lambda item: -item[1])
    return {"stats": dict(counters["stats"]), "breaks": [[str(why)[:300], count] for why, count in breaks[:5]]}


def engine_step(config: RunConfig, phase: int) -> tuple[Step, LanguageModel]:
    from training.engine import build_engine

    engine: Any = build_engine(config, config.phases[phase], initialize(config, RankInfo(0, 1, 0)))
    return lambda batch: engine.train_step(batch, LEARNING_RATE).loss, engine.module.net


def plain_step(config: RunConfig, phase: int, setting: Setting) -> tuple[Step, LanguageModel]:
    """bf16 weights and gradients, fp32 copies that are summed into, clipped and updated: no library but PyTorch."""
    with setting.device:
        net = LanguageModel(config.model, None, config.phases[phase].memory).to(torch.bfloat16)
    for parameter in net.parameters():  # any values cost the same; drawing the real ones takes a while on a CPU
        nn.init.normal_(parameter, std=config.model.init_std) if parameter.dim() > 1 else nn.init.ones_(parameter)
    weights = list(net.parameters())
    masters = [p.detach().float() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, betas=config.training.betas, fused=True)

    def step(batch: StepBatch) -> float:
        total = torch.zeros((), device=setting.device)
        for micro in (m.to(setting.device) for m in batch.micro_batches):
            hidden, _ = net.hidden(micro.ids, micro.documents[:, 1:])
            loss = cross_entropy(net, hidden, micro.labels) / len(batch.micro_batches)
            loss.backward()
            total += loss.detach()
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, config.training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        return float(total)

    return step, net


def cross_entropy(net: LanguageModel, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net.head.logits(hidden).float().flatten(0, 1), labels.flatten())
