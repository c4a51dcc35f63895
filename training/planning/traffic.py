"""Bytes that a rank sends over each kind of link in one optimizer step, and the seconds this takes.

Collectives are rings: in an all-reduce of x bytes over n ranks each sends 2x (n-1)/n bytes, in a gather or scatter half
of that.
"""

from dataclasses import dataclass

from model.memory.planning import FP32
from training.config import Phase, RunConfig
from training.planning.activations import Shape
from training.planning.devices import Device
from training.planning.memory import BUCKET, ITEM, Ranks, Stage, travelling_residual


@dataclass(frozen=True)
class Link:
    """One kind of traffic of one rank in one step."""

    bytes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """Traffic of one rank in one step, by kind of link.

    tensor, pipeline and segment: inside micro-batches, summed over all of the step; data: between ranks with the same
    weights; host: to and from CPU memory.
    """

    tensor: Link = Link()
    pipeline: Link = Link()
    segment: Link = Link()
    data: Link = Link()
    host: Link = Link()


def traffic_of(
    config: RunConfig, phase: Phase, shape: Shape, stage: Stage, ranks: Ranks, device: Device, micro_batches: int
) -> Traffic:
    """Return the traffic of a rank of `stage` in one step."""
    return Traffic(
        tensor=_tensor(config, shape, stage, ranks, device, micro_batches),
        pipeline=_pipeline(shape, stage, ranks, device, micro_batches),
        segment=_segment(shape, stage, ranks, device, micro_batches),
        data=_data(config, stage, ranks, device, micro_batches),
        host=_host(config, stage, ranks, device, micro_batches),
    )


def _tensor(config: RunConfig, shape: Shape, stage: Stage, ranks: Ranks, device: Device, micro_batches: int) -> Link:
    """Two all-reduces for each layer forward, two backward, and those of recomputed forwards again.

    Sequence parallelism sends the same amount as scatter and gather. A memory may have collectives of its own: the
    published LM2 gathers what it reads.
    """
    if ranks.tensor == 1:
        return Link()
    again = {"none": 0, "selective": 1, "full": 2}[config.training.activation_checkpointing]
    count = len(stage.decoders) * (4.0 + again) + stage.has_embedding + stage.has_head
    count += 1.5 * shape.model.memory.gathers * sum(role.hosts for role in stage.decoders)
    if shape.reference_tokens:  # references go through the layers together with the tokens
        more = sum(role.references != "none" for role in stage.decoders) / len(stage.decoders)
        count *= 1 + more * shape.reference_tokens / shape.tokens
    size = 2 * shape.residual * (ranks.tensor - 1) / ranks.tensor
    return Link(count * size * micro_batches, count * micro_batches * device.collective(size, ranks.tensor, stride=1))


def _pipeline(shape: Shape, stage: Stage, ranks: Ranks, device: Device, micro_batches: int) -> Link:
    """The residual stream to the next stage, its gradient back, and the document numbers."""
    if ranks.pipeline == 1:
        return Link()
    size = 2 * travelling_residual(shape, stage) + 8 * shape.tokens
    return Link(micro_batches * size, micro_batches * size / device.link(2 * ranks.world, _stride(ranks)))


def _segment(shape: Shape, stage: Stage, ranks: Ranks, device: Device, micro_batches: int) -> Link:
    """One bank for each memory layer over each boundary between ranks, and its gradient back."""
    if ranks.segment == 1:
        return Link()
    bank = shape.batch * shape.model.memory.state_numbers(shape.model) / ranks.tensor * FP32
    layers = sum(role.hosts for role in stage.decoders)
    seconds = device.collective(bank, ranks.segment, ranks.tensor) * (ranks.segment - 1)
    return Link(2 * layers * bank * micro_batches, 2 * layers * seconds * micro_batches)


def _data(config: RunConfig, stage: Stage, ranks: Ranks, device: Device, micro_batches: int) -> Link:
    """The sum of gradients over the ranks with the same weights, and the gathering of weights after the step.

    In ZeRO 1 and 2 DeepSpeed all-reduces whole buckets: once a step in fp32 (1), for every micro-batch in the dtype of
    the weights (2). ZeRO 3 gathers weights for each forward and backward and scatters gradients.
    """
    if ranks.shards == 1:
        return Link()
    item, share, zero = ITEM[config.training.precision], (ranks.shards - 1) / ranks.shards, config.training.zero_stage
    stride = ranks.tensor
    if zero == 1:
        reduced, gathered = 2 * share * FP32 * stage.trained, share * item * stage.trained
    elif zero == 2:
        reduced, gathered = 2 * share * item * stage.trained * micro_batches, share * item * stage.trained
    else:
        reduced = share * item * stage.trained * micro_batches
        gathered = 2 * share * item * stage.parameters * micro_batches
    calls = 1 + (reduced + gathered) // (item * BUCKET)
    size = reduced + gathered
    return Link(size, calls * device.collective(size / calls, ranks.shards, stride))


def _host(config: RunConfig, stage: Stage, ranks: Ranks, device: Device, micro_batches: int) -> Link:
    """With offloading: gradients to CPU memory and weights back; with `all`, also the weights of every pass."""
    if config.training.offload == "none":
        return Link()
    item, part = ITEM[config.training.precision], stage.trained / ranks.shards
    size = (FP32 + item) * part
    if config.training.offload == "all":
        size += 2 * item * stage.parameters / ranks.shards * micro_batches
    # AdamW on the CPUs reads and writes its state there, assumed at the bandwidth of the link
    return Link(size, (size + 5 * FP32 * part) / device.host_link)


def _stride(ranks: Ranks) -> int:
    """Return the distance in ranks between neighbours in the pipeline, whose dimension varies slowest."""
    return ranks.tensor * ranks.segment * ranks.data
