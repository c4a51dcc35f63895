"""The time of one optimizer step."""

import math
from dataclasses import dataclass, replace

from model.cost import flops_per_token
from model.memory.planning import FP32
from training.config import Phase, RunConfig
from training.planning.activations import Shape
from training.planning.devices import Device
from training.planning.memory import ITEM, Ranks, Stage, shape_of, stages_of
from training.planning.traffic import Traffic, traffic_of
from training.planning.work import decoder_work, embedding_work, head_work

OWN_GRADIENTS = 3  # passes over a micro-batch's gradients when there are several: reading two arrays, writing the sum


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of a phase on its slowest stage, assuming that nothing overlaps."""

    micro_batches: int
    compute: float
    bubble: float  # waiting for the pipeline to fill and to drain
    tensor: float
    pipeline: float
    segment: float
    data: float
    optimizer: float  # AdamW's step, and the transfer from and to CPU memory when it is offloaded
    traffic: Traffic
    tokens: int
    mfu: float
    document_mfu: float  # MFU that counts attention only inside documents

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by purpose."""
        names = ("compute", "bubble", "tensor", "pipeline", "segment", "data", "optimizer")
        return {name: getattr(self, name) for name in names}

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all devices together."""
        return self.tokens / self.seconds


def step_time(config: RunConfig, phase: Phase, ranks: Ranks, device: Device) -> StepTime:
    """Return the time of a step of `phase`.

    It is (micro-batches + stages - 1) times that of a micro-batch on the slowest stage, then gradients and optimizer.
    """
    samples = phase.tokens_per_step // config.data.sequence_length
    micro_batches = max(1, samples // (config.training.micro_batch_size * ranks.data))
    shape = shape_of(config, phase, device)
    stages = stages_of(config.model, phase.memory, phase.trains == "memory", ranks.tensor, ranks.pipeline)
    turns = [_compute(config, shape, stage, device, micro_batches) for stage in stages]
    slowest = max(range(len(stages)), key=lambda i: turns[i])
    stage = max(stages, key=lambda s: s.parameters)
    traffic = traffic_of(config, phase, shape, stages[slowest], ranks, device, micro_batches)
    data = traffic_of(config, phase, shape, stage, ranks, device, micro_batches)
    traffic = Traffic(traffic.tensor, traffic.pipeline, traffic.segment, data.data, data.host)
    waiting = (ranks.pipeline - 1) / micro_batches
    inside = turns[slowest] * micro_batches + traffic.tensor.seconds + traffic.segment.seconds
    parts = {
        "compute": turns[slowest] * micro_batches,
        "bubble": waiting * inside,
        "tensor": traffic.tensor.seconds,
        "pipeline": traffic.pipeline.seconds,
        "segment": traffic.segment.seconds,
        "data": traffic.data.seconds,
        "optimizer": _optimizer(config, stage, ranks, device) + traffic.host.seconds,
    }
    tokens = micro_batches * config.training.micro_batch_size * ranks.data * config.data.sequence_length
    tokens_of_peak = tokens / sum(parts.values()) / (ranks.world * device.peak[config.training.precision])
    mfu, document_mfu = (
        flops_per_token(config.model, phase.memory, length) * tokens_of_peak
        for length in (math.inf, device.document_tokens)
    )
    return StepTime(micro_batches, **parts, traffic=traffic, tokens=tokens, mfu=mfu, document_mfu=document_mfu)


def bubble_fraction(micro_batches: int, stages: int) -> float:
    """Return the fraction of time in which a pipeline stage waits: (p - 1) / (m + p - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def _compute(config: RunConfig, shape: Shape, stage: Stage, device: Device, micro_batches: int) -> float:
    """Return the seconds of one micro-batch's forward and backward on one stage."""
    precision, checkpointing = config.training.precision, config.training.activation_checkpointing
    if device.name != "CPU":
        documents = device.document_tokens if shape.varlen else math.inf  # attention with a mask computes all pairs
        device = replace(device, compiled=shape.compiled, tf32=precision == "bf16", document_tokens=documents)
    seconds = 0.0
    for role in set(stage.decoders):
        layer = decoder_work(shape, role, device, precision).repeated(checkpointing)
        seconds += stage.decoders.count(role) * layer
    if stage.has_embedding:
        seconds += embedding_work(shape, device)
    if stage.has_head:
        seconds += head_work(shape, device, precision)
    item = ITEM[precision]
    if micro_batches > 1 or item < FP32:
        gradients = stage.trained * (item + 2 * FP32 if item < FP32 else OWN_GRADIENTS * FP32)
        seconds += device.stream(gradients, gradients)
    return seconds


def _optimizer(config: RunConfig, stage: Stage, ranks: Ranks, device: Device) -> float:
    if config.training.offload != "none":
        return 0.0  # computed on the CPUs, and counted with the transfer to them
    zeroed = device.stream(FP32 * stage.trained, FP32 * stage.trained)
    return device.adamw(stage.trained / ranks.shards) + zeroed
