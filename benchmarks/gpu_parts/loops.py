"""A step of the engine, and the same step in a plain PyTorch loop."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_parts.common import Setting, has_deepspeed
from benchmarks.gpu_parts.paths import module, replaced
from model import LanguageModel
from model.memory.interface import memories
from training.batches import MicroBatch, StepBatch
from training.config import RunConfig
from training.distributed.topology import RankInfo, initialize
from training.faults.anomalies import LossGuard

LEARNING_RATE = 1e-4
Step = Callable[[StepBatch], float]
Made = tuple[Step, int]  # and the number of parameters


@torch.no_grad()
def draw(net: LanguageModel, device: torch.device) -> None:
    """Weights as large as the real ones, drawn on the device: any cost the same, and a CPU takes half a minute."""
    generator = torch.Generator(device).manual_seed(0)  # every path is measured on the same model
    for parameter in net.parameters():
        if parameter.device != device:
            parameter.data = torch.empty(parameter.shape, device=device, dtype=parameter.dtype)
        if parameter.dim() > 1:
            parameter.normal_(0.0, net.config.initial_std(parameter.size(1)), generator=generator)
        else:
            parameter.fill_(1.0)
    for memory in memories(net):
        for name, parameter in memory.named_parameters():
            if parameter.dim() == 1:  # gates begin where they do in a run
                parameter.copy_(memory.initial_value(name, tuple(parameter.shape), torch.Generator().manual_seed(0)))


@contextlib.contextmanager
def engine_step(config: RunConfig, phase: int, setting: Setting, compiled: bool) -> Iterator[Made]:
    """compiled: as `config` already says."""
    from training.engine import build_engine

    def on_device(net: LanguageModel, *_: object, **__: object) -> None:
        draw(net, setting.device)

    with replaced(LanguageModel, "initialize", on_device):
        engine: Any = build_engine(config, config.phases[phase], initialize(config, RankInfo(0, 1, 0)))
    try:
        yield (
            lambda batch: engine.train_step(batch, LEARNING_RATE).loss,
            sum(p.numel() for p in engine.parameters.values()),
        )
    finally:
        engine.close()


@contextlib.contextmanager
def plain_step(config: RunConfig, phase: int, setting: Setting, compiled: bool) -> Iterator[Made]:
    """bf16 weights and gradients, fp32 copies that are summed into, clipped and updated: no library but PyTorch."""
    with setting.device:
        net = LanguageModel(config.model, None, config.phases[phase].memory).to(torch.bfloat16)
    draw(net, setting.device)
    loss_of = micro_loss(net, compiled)
    weights = list(net.parameters())
    masters = [p.detach().float() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, betas=config.training.betas, fused=True)

    def step(batch: StepBatch) -> float:
        total = torch.zeros((), device=setting.device)
        for micro in (m.to(setting.device) for m in batch.micro_batches):
            loss = loss_of(micro.scaled(1 / batch.valid))
            loss.backward()
            total += loss.detach()
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None
        nn.utils.clip_grad_norm_(masters, config.training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(weights, [*masters])  # type: ignore[arg-type]
        return float(total)

    yield step, sum(p.numel() for p in weights)


def micro_loss(net: LanguageModel, compiled: bool) -> Callable[[MicroBatch], Tensor]:
    """Return the product's own forward and loss: a loop differs from the engine by DeepSpeed alone.

    Without DeepSpeed the loss takes all logits at once.
    """
    if compiled:
        compile_layers(net)
    if not has_deepspeed():

        def whole(micro: MicroBatch) -> Tensor:
            hidden, _ = net.hidden(micro.ids, micro.documents[:, 1:])
            nats = F.cross_entropy(
                net.head.logits(hidden).float().flatten(0, 1), micro.labels.flatten(), reduction="none"
            )
            return (nats * micro.weights.flatten()).sum()

        return whole
    from training.engine import LossModel

    guard = LossGuard()
    with contextlib.suppress(LookupError):  # before there was a loss to compile
        return LossModel(net, guard, module("model.loss").HeadLoss(net.tp, compiled))
    return LossModel(net, guard)


def compile_layers(net: LanguageModel) -> None:
    for layer in net.layers:
        if hasattr(layer, "compile_block"):
            layer.compile_block()  # type: ignore[operator]
        else:
            layer.compile(backend="inductor" if torch.cuda.is_available() else "eager")
