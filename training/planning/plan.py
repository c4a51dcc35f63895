"""The plan of one configuration on one number of devices: whether it fits, and how long it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from model.cost import count_parameters
from model.memory.planning import FP32
from training.config import RunConfig
from training.planning.devices import Device
from training.planning.memory import Memory, Ranks, memory_of, ranks_of
from training.planning.timing import StepTime, step_time

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Plan:
    """The predicted memory and time of a run with a valid topology."""

    config: RunConfig
    ranks: Ranks
    device: Device

    @cached_property
    def memory(self) -> Memory:
        """Memory of the fullest rank in the phase that needs most."""
        return max(self._memories, key=lambda memory: memory.total)

    @cached_property
    def fullest_phase(self) -> str:
        """Name of the phase that needs most memory."""
        index = max(range(len(self._memories)), key=lambda i: self._memories[i].total)
        return self.config.phases[index].name

    @cached_property
    def _memories(self) -> list[Memory]:
        return [memory_of(self.config, phase, self.ranks, self.device) for phase in self.config.phases]

    @property
    def fits(self) -> bool:
        """Whether the fullest rank fits into the device's memory."""
        return self.memory.total <= self.device.usable

    @cached_property
    def steps(self) -> list[StepTime]:
        """Time of one step of each phase."""
        return [step_time(self.config, phase, self.ranks, self.device) for phase in self.config.phases]

    @cached_property
    def seconds(self) -> float:
        """Seconds of all steps of all phases, without evaluations, checkpoints and restarts."""
        phases = zip(self.config.phases, self.steps, strict=True)
        return sum(phase.steps * step.seconds for phase, step in phases)

    @property
    def days(self) -> float:
        """Days of all steps of all phases."""
        return self.seconds / DAY

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all devices together, over the whole run."""
        return self.config.total_tokens / self.seconds

    @property
    def mfu(self) -> float:
        """FLOP/s of the model over the devices' peak, 0..1, over the whole run."""
        phases = zip(self.config.phases, self.steps, strict=True)
        return sum(phase.steps * step.seconds * step.mfu for phase, step in phases) / self.seconds

    @property
    def checkpoint_bytes(self) -> float:
        """Size of a checkpoint: fp32 weights and AdamW's two moments."""
        return 3.0 * FP32 * count_parameters(self.config.model).total

    def overrides(self) -> list[str]:
        """Return the plan's topology as overrides for pretrain.py's command line."""
        training, parallel = self.config.training, self.config.parallel
        values = {
            "parallel.tensor": parallel.tensor,
            "parallel.pipeline": parallel.pipeline,
            "parallel.segment": parallel.segment,
            "parallel.sequence": str(parallel.sequence).lower(),
            "training.zero_stage": training.zero_stage,
            "training.offload": training.offload,
            "training.micro_batch_size": training.micro_batch_size,
            "training.activation_checkpointing": training.activation_checkpointing,
        }
        return [f"{key}={value}" for key, value in values.items()]


def make_plan(config: RunConfig, world: int, device: Device) -> Plan:
    """Return the plan of the configured topology, which must be valid (`topology_problems`)."""
    return Plan(config, ranks_of(config, world), device)


def topology_problems(config: RunConfig, world: int, device: Device) -> list[str]:
    """Return why `world` devices cannot run the configuration as it is, with the nearest numbers that can."""
    parallel, training, problems = config.parallel, config.training, config.problems()
    if parallel.tensor > device.node_size and device.name != "CPU":
        problems.append(
            f"parallel.tensor: {parallel.tensor} ranks do not fit into a node of {device.node_size} {device.name}; "
            f"set parallel.tensor to {device.node_size} or less"
        )
    of_model = parallel.tensor * parallel.pipeline * parallel.segment
    if world % of_model:
        lower = world - world % of_model
        nearest = " or ".join(str(n) for n in (lower, lower + of_model) if n)
        tensors = [t for t in range(1, parallel.tensor + 1) if world % (t * of_model // parallel.tensor) == 0]
        tensors = [t for t in tensors if not _with_tensor(config, t).problems()]
        way_out = f", or parallel.tensor={tensors[-1]}" if tensors else ""
        problems.append(
            f"--devices: {world} is not a multiple of parallel.tensor {parallel.tensor} x pipeline {parallel.pipeline} "
            f"x segment {parallel.segment} = {of_model}; the nearest are {nearest} devices{way_out}"
        )
        return problems
    share = training.micro_batch_size * (world // of_model)
    for index, phase in enumerate(config.phases):
        samples = phase.tokens_per_step // config.data.sequence_length
        if samples % share or not samples:
            fitting = [n for n in range(1, samples + 1) if samples % (n * training.micro_batch_size) == 0]
            nearest = " or ".join(str(n * of_model) for n in _around(fitting, world // of_model))
            problems.append(
                f"phases.{index}.tokens_per_step: {phase.tokens_per_step:,} tokens are {samples} samples, which is not "
                f"a multiple of training.micro_batch_size {training.micro_batch_size} x {world // of_model} "
                f"data-parallel ranks; the nearest are {nearest or 'no'} devices, or use a multiple of "
                f"{share * config.data.sequence_length:,}"
            )
            break
    return problems


def _with_tensor(config: RunConfig, tensor: int) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"tensor": tensor})})


def _around(values: Sequence[int], wanted: int) -> list[int]:
    """Return the nearest of `values` at or below `wanted` and above it."""
    below, above = [v for v in values if v <= wanted], [v for v in values if v > wanted]
    return below[-1:] + above[:1]
