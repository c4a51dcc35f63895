"""Bytes that each rank holds: weights and training state as DeepSpeed keeps them, activations, buffers."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from model.config import ModelConfig
from model.cost import Role, layer_parameters, roles, stage_costs
from model.memory.planning import FP32
from training.config import Phase, RunConfig
from training.config.compiling import compile_obstacle
from training.planning.activations import Shape, head_kept, head_transient, layer_kept, layer_transient
from training.planning.devices import Device
from training.planning.stages import cut_stages

BUCKET = 500_000_000  # most elements of DeepSpeed's bucket (reduce_bucket_size); smaller for a smaller model
LIVE = 1_000_000_000  # most elements gathered at a time, DeepSpeed's default stage3_max_live_parameters
ITEM = {"fp32": 4, "bf16": 2}  # bytes of a weight and of an activation


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank; host: bytes that offloading moves to CPU memory, which are not part of the total."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    banks: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0
    overhead: float = 0.0
    host: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """Bytes by purpose, in the order in which reports show them."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer,
            "activations": self.activations,
            "memory states": self.banks,
            "logits": self.logits,
            "communication buffers": self.buffers,
            "framework": self.overhead,
        }

    @property
    def total(self) -> float:
        """Bytes of all parts on the device."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class Stage:
    """The content of one pipeline stage; parameters and trained are numbers on one tensor-parallel rank."""

    index: int
    parameters: int
    trained: int
    decoders: tuple[Role, ...]  # one for each decoder layer
    has_embedding: bool
    has_head: bool


@dataclass(frozen=True)
class Ranks:
    """The sizes of a topology's dimensions."""

    tensor: int
    pipeline: int
    segment: int
    data: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tensor * self.pipeline * self.segment * self.data

    @property
    def shards(self) -> int:
        """Number of ranks with the same weights, over which ZeRO partitions the state."""
        return self.segment * self.data


def ranks_of(config: RunConfig, world: int) -> Ranks:
    """Return the topology of `world` ranks, which must be a multiple of tensor x pipeline x segment."""
    parallel = config.parallel
    data = world // (parallel.tensor * parallel.pipeline * parallel.segment)
    return Ranks(parallel.tensor, parallel.pipeline, parallel.segment, data)


@lru_cache(maxsize=256)
def stages_of(model: ModelConfig, memory_on: bool, memory_alone: bool, tensor: int, pipeline: int) -> list[Stage]:
    """Return the pipeline stages of the best cut; memory_alone: only the memory's parameters are trained."""
    costs, counts = stage_costs(model, memory_on), layer_parameters(model, memory_on)
    every = roles(model, memory_on)
    cut, stages = cut_stages(costs, pipeline), []
    for index in range(pipeline):
        layers = range(cut[index], cut[index + 1])
        own = sum(counts[i].per_rank(tensor) for i in layers)
        memory = sum(counts[i].memory_split // tensor + counts[i].memory_whole for i in layers)
        if model.tie_embeddings and index == pipeline - 1 > 0:
            own += counts[0].per_rank(tensor)  # the copy of the embedding that is the output head
        decoders = tuple(every[i - 1] for i in layers if 0 < i <= model.num_layers)
        trained = memory if memory_alone else own
        stages.append(Stage(index, own, trained, decoders, index == 0, index == pipeline - 1))
    return stages


def is_compiled(config: RunConfig, phase: Phase, device: Device) -> bool:
    """Return whether the run compiles the layers and the loss of the phase on this device."""
    wanted = device.name != "CPU" and config.training.compile != "off"
    return wanted and compile_obstacle(config, phase) is None


def shape_of(config: RunConfig, phase: Phase, device: Device) -> Shape:
    """Return the sizes of what one rank computes for a micro-batch."""
    return Shape(
        model=config.model,
        memory_on=phase.memory,
        batch=config.training.micro_batch_size,
        length=config.data.sequence_length // config.parallel.segment,
        tensor=config.parallel.tensor,
        sequence=config.parallel.sequence,
        item=ITEM[config.training.precision],
        fused_norms=device.fused_norms,
        compiled=is_compiled(config, phase, device),
    )


def memory_of(config: RunConfig, phase: Phase, ranks: Ranks, device: Device) -> Memory:
    """Return the bytes of the fullest rank in one phase."""
    stages = stages_of(config.model, phase.memory, phase.trains == "memory", ranks.tensor, ranks.pipeline)
    samples = phase.tokens_per_step // config.data.sequence_length
    micro_batches = max(1, samples // (config.training.micro_batch_size * ranks.data))
    every = [_stage_memory(config, stage, shape_of(config, phase, device), ranks, micro_batches) for stage in stages]
    fullest = max(every, key=lambda memory: memory.total)
    # on a CPU, pages of a buffer that are never written take no memory
    buffers = fullest.buffers if device.name != "CPU" else min(fullest.buffers, fullest.gradients)
    return Memory(**vars(fullest) | {"overhead": device.overhead, "buffers": buffers})


def _stage_memory(config: RunConfig, stage: Stage, shape: Shape, ranks: Ranks, micro_batches: int) -> Memory:
    state = state_bytes(config, stage.parameters, stage.trained, ranks.shards)
    checkpointing = config.training.activation_checkpointing
    in_flight = min(micro_batches, ranks.pipeline - stage.index)  # micro-batches whose activations the stage keeps
    layers = [(layer_kept(shape, role), count) for role, count in Counter(stage.decoders).items()]
    kept = sum(layer.after(checkpointing) * count for layer, count in layers)
    banks = sum(layer.banks * count for layer, count in layers) if checkpointing == "none" else 0.0
    widest = max(layer_transient(shape, layer, checkpointing) for layer, _ in layers)
    logits = 0.0
    if stage.has_head:
        logits = head_kept(shape)
        widest = max(widest, head_transient(shape))  # the loss is finished before a layer's backward begins
    if ranks.pipeline > 1:  # input and output of the stage, and their gradients
        widest += 4 * travelling_residual(shape, stage)
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=(kept - banks) * in_flight + widest,
        banks=banks * in_flight,
        logits=logits,
        buffers=state.buffers,
        host=state.host,
    )


def travelling_residual(shape: Shape, stage: Stage) -> float:
    """Return the bytes of one micro-batch that enter a stage, or leave the first one."""
    if shape.memory_on and shape.model.memory.carry_travels:
        return 2.0 * shape.residual
    return shape.travelling(stage.decoders[0]) * shape.model.hidden_size * shape.item


def state_bytes(config: RunConfig, parameters: int, trained: int, shards: int) -> Memory:
    """Return weights, gradients, optimizer state and buffers of one rank, as DeepSpeed 0.19 holds them at its peak.

    Optimizer state: an fp32 master copy (also of fp32 weights) and two moments, 12 bytes an element, partitioned
    by every ZeRO stage. Untrained parameters have the same state, kept for later phases and never offloaded.
    Gradients: ZeRO 1 in bf16 accumulates all of them in fp32; in fp32 it keeps those of the backward pass, or during a
    step twice its partition. ZeRO 2 keeps its partition (in fp32 twice during a step) beside a bucket, which is a
    buffer; ZeRO 3 keeps its partition twice during a step.
    """
    training, item = config.training, ITEM[config.training.precision]
    stage, offload, mixed = training.zero_stage, training.offload, item < FP32
    part = trained / shards
    optimizer = 3 * FP32 * part
    bucket = float(min(parameters, BUCKET))
    gradients, buffers = FP32 * float(trained), item * bucket
    if stage == 1 and mixed and offload == "none":
        buffers = FP32 * bucket if shards > 1 else 0.0
    elif stage == 1:
        gradients = max(gradients, 2 * FP32 * part)
    elif stage == 2:
        gradients = FP32 * part * (1 if mixed else 2)
    else:
        gradients, buffers = 2 * FP32 * part, item * (bucket + float(min(parameters, LIVE)))
    weights, host = item * (parameters / shards if stage == 3 else float(parameters)), 0.0
    if offload != "none":
        host, optimizer = optimizer + FP32 * part, 0.0
        gradients = float(item * trained) if stage == 1 else item * bucket
    if offload == "all":
        host, weights = host + weights, 0.0
    optimizer += 3 * FP32 * (parameters - trained) / shards
    return Memory(weights=weights, gradients=gradients, optimizer=optimizer, buffers=buffers, host=host)
