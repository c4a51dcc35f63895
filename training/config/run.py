"""The whole configuration of a run: its sections, and the rules between them."""

from typing import Any

from pydantic import Field, model_validator

from data_prep import DataConfig
from data_prep.references import CHUNK
from model import ModelConfig
from model.memory.registry import parallel_kinds
from training.config.sections import (
    CheckpointSection,
    FaultConfig,
    ParallelSection,
    Phase,
    RunSection,
    Section,
    TrainingSection,
)
from training.config.tracking import TrackingConfig


class RunConfig(Section):
    """The configuration of a run. Validation raises one error that lists every broken rule."""

    run: RunSection
    data: DataConfig
    model: ModelConfig
    phases: tuple[Phase, ...] = Field(min_length=1, description="what is trained, one after the other")
    training: TrainingSection
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    faults: FaultConfig = Field(default_factory=FaultConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunConfig":
        if problems := _problems(self):
            raise ValueError("\n".join(problems))
        return self

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def total_tokens(self) -> int:
        """Number of tokens of all steps; at least what the phases ask for, as each is rounded up to whole steps."""
        return sum(phase.steps * phase.tokens_per_step for phase in self.phases)

    def problems(self) -> list[str]:
        """Return the broken rules between sections; a copy made by `model_copy` was not validated and may have some."""
        return _problems(self)

    def identity(self) -> dict[str, Any]:
        """Return the fields that the trained weights depend on; a run can be continued while they stay the same."""
        full = self.model_dump(mode="json")
        training = ("precision", "betas", "eps", "weight_decay", "gradient_clipping")
        return {
            "run": {"seed": self.run.seed},
            "data": {key: full["data"][key] for key in ("sequence_length", "mix")},  # tokens: by fingerprint
            "model": full["model"],
            "phases": full["phases"],
            "training": {key: full["training"][key] for key in training},
        }


def _problems(config: RunConfig) -> list[str]:
    """Return a message for each broken rule between sections."""
    names = [phase.name for phase in config.phases]
    repeated = [f"phases: the names {names} must differ; rename one"] if len(set(names)) < len(names) else []
    phases = [p for index in range(len(config.phases)) for p in _phase_problems(config, index)]
    return _parallel_problems(config) + phases + repeated


def _parallel_problems(config: RunConfig) -> list[str]:
    model, parallel, stage, problems = config.model, config.parallel, config.training.zero_stage, []
    shards = {name: getattr(model, name) for name in ("num_heads", "num_kv_heads", "ffn_size", "vocab_size")}
    if model.memory.exists:
        shards["memory.heads"] = model.memory.heads
    for name, value in shards.items():
        if value % parallel.tensor:
            divisors = [d for d in range(1, value + 1) if value % d == 0][:8]
            problems.append(
                f"model.{name}: {value} is not divisible by parallel.tensor {parallel.tensor}; "
                f"set parallel.tensor to one of {divisors} or change model.{name}"
            )
    if parallel.pipeline > model.num_layers:
        problems.append(
            f"parallel.pipeline: {parallel.pipeline} stages need at least one layer each, but model.num_layers is "
            f"{model.num_layers}; set parallel.pipeline to {model.num_layers} or less"
        )
    if parallel.pipeline > 1 and model.memory.sequential:
        problems += _sequential_problems(config)
    problems += _sequence_problems(config) + _segment_problems(config) + _explicit_problems(config)
    if parallel.pipeline > 1 and stage > 1:
        problems.append(
            f"training.zero_stage: {stage} with parallel.pipeline {parallel.pipeline}; DeepSpeed's pipeline needs "
            "whole gradients, so set training.zero_stage=1 or parallel.pipeline=1"
        )
    if config.training.offload == "all" and stage < 3:
        problems.append(
            f"training.offload: all offloads weights too, which needs training.zero_stage 3, not {stage}; set "
            "training.zero_stage=3 or training.offload=optimizer"
        )
    if config.training.offload != "none" and parallel.pipeline > 1:
        problems.append(
            f"training.offload: {config.training.offload} with parallel.pipeline {parallel.pipeline}; set "
            "training.offload=none or parallel.pipeline=1"
        )
    return problems


def _sequence_problems(config: RunConfig) -> list[str]:
    """Return the broken rules of sequence parallelism: every tensor rank has an equal share of a sample's tokens."""
    parallel, length = config.parallel, config.data.sequence_length
    if not parallel.sequence or parallel.tensor == 1:
        return []
    if config.model.memory.sequential:
        return [
            f"parallel.sequence: on with memory {config.model.memory.title}, whose segments are computed one after the "
            "other, each by all tensor ranks; set parallel.sequence=false"
        ]
    own = length // parallel.segment
    if own % parallel.tensor:
        return [
            f"parallel.sequence: {own} tokens cannot be split evenly over parallel.tensor {parallel.tensor}; "
            f"set data.sequence_length to a multiple of {parallel.tensor * parallel.segment} or parallel.sequence=false"
        ]
    return []


def _segment_problems(config: RunConfig) -> list[str]:
    """Return the broken rules of segment parallelism.

    Every rank of a group has equally many whole segments, and ranks exchange nothing but banks.
    """
    size, model, length = config.parallel.segment, config.model, config.data.sequence_length
    if size == 1:
        return []
    problems = []
    if model.memory.sequential:
        problems.append(
            f"parallel.segment: {size} with memory {model.memory.title}, whose segments can only be computed one after "
            f"the other; set parallel.segment=1, or one of these memories: {parallel_kinds()}"
        )
    if model.attention_span > 1:
        problems.append(
            f"parallel.segment: {size} with model.attention_span {model.attention_span}: attention would need segments "
            "of another rank; set model.attention_span=1 or parallel.segment=1"
        )
    if length % (size * model.segment_length):
        step = size * model.segment_length
        problems.append(
            f"parallel.segment: {size} ranks cannot share samples of {length} tokens in whole segments of "
            f"{model.segment_length}; set data.sequence_length to {max(1, length // step) * step} or another multiple "
            f"of {step}"
        )
    return problems


def _explicit_problems(config: RunConfig) -> list[str]:
    """Return the broken rules of explicit memory.

    References cannot be split across sequence- or segment-parallel ranks, and the chunk length must match the
    neighbour table's.
    """
    explicit, parallel, problems = config.model.explicit, config.parallel, []
    if explicit is None:
        return []
    if parallel.sequence and parallel.tensor > 1:
        problems.append(
            "parallel.sequence: on with model.explicit, whose references cannot be split among tensor ranks; set "
            "parallel.sequence=false"
        )
    if parallel.segment > 1:
        problems.append(
            f"parallel.segment: {parallel.segment} with model.explicit: a chunk reads references of chunks of another "
            "rank; set parallel.segment=1"
        )
    if config.data.references and explicit.chunk_length != CHUNK:
        problems.append(
            f"model.explicit.chunk_length: {explicit.chunk_length}, but the tables of data.references have a reference "
            f"for every {CHUNK} tokens; set it to {CHUNK}"
        )
    return problems


def _sequential_problems(config: RunConfig) -> list[str]:
    """Return the broken rule of memories with sequential segments in a pipeline.

    A segment begins with the memory that the last stage computed for the segment before, so stages cannot overlap.
    """
    model, length = config.model, config.data.sequence_length
    if model.memory.carry_travels and length <= model.segment_length:
        return []
    what, way_out = model.memory.title, "set parallel.pipeline=1"
    if model.memory.carry_travels:
        way_out += f" or data.sequence_length to at most {model.segment_length}"
    return [
        f"parallel.pipeline: {config.parallel.pipeline} with memory {what} and samples of {length} tokens in segments "
        f"of {model.segment_length}: a segment needs the memory that the last stage computes from the segment before; "
        f"{way_out}"
    ]


def _phase_problems(config: RunConfig, index: int) -> list[str]:
    """Return the broken rules of one phase."""
    phase, where, problems = config.phases[index], f"phases.{index}", []
    if phase.tokens_per_step % config.data.sequence_length:
        problems.append(
            f"{where}.tokens_per_step: {phase.tokens_per_step} is not a multiple of data.sequence_length "
            f"{config.data.sequence_length}; use a multiple"
        )
    if phase.memory and not config.model.has_memory:
        problems.append(
            f"{where}.memory: on, but model.memory.kind is none and there is no model.explicit; set one or memory: off"
        )
    if phase.memory and config.model.explicit and config.data.references is None:
        problems.append(
            f"{where}.memory: on with model.explicit, but data.references is missing, the folder of references and "
            "neighbour tables; set it (launchers/prepare_data.py makes it) or memory: off"
        )
    if phase.trains == "memory" and not config.model.memory.exists:
        problems.append(f"{where}.trains: memory, but explicit memory has no parameters of its own; set trains: all")
    fresh = phase.init_from == "scratch" or (index == 0 and phase.init_from == "previous")
    if fresh and phase.trains == "memory":
        problems.append(
            f"{where}.trains: memory, but the phase begins with an untrained backbone; set init_from or trains: all"
        )
    if phase.trains == "memory" and config.parallel.pipeline > 1:
        problems.append(
            f"{where}.trains: memory with parallel.pipeline {config.parallel.pipeline}: a stage without trained "
            "parameters computes no gradient to send back; set parallel.pipeline=1"
        )
    drops = index > 0 and config.phases[index - 1].memory and not phase.memory and phase.init_from == "previous"
    if drops and config.model.memory.exists:  # explicit memory has no parameters that could be lost
        problems.append(f"{where}.memory: off after an on phase would drop the trained memory; set memory: on")
    return problems
