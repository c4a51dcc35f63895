"""The sections of a run's configuration: fields, their descriptions, and the rules inside one section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from data_prep.sources.places import LONGEST_NAME, is_remote, local_path


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # bool is a kind of int in Python, so yes would become 1
        raise ValueError("is yes or no, but must be a number")
    return value


Positive = Annotated[int, BeforeValidator(_no_bool), Field(gt=0)]
Weights = dict[str, Annotated[float, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections of the configuration: immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSection(Section):
    """The `run` section: name, folder and seed of the run."""

    name: str = Field(min_length=1, description="name of the run and of its folder below output_dir")
    output_dir: Annotated[Path, AfterValidator(local_path)] = Field(Path("runs"), description="folder of all runs")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="seed of the initial weights and of the data order")

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if "/" in name or "\0" in name or name in (".", ".."):
            raise ValueError("must be the name of one folder: no '/', not '.' or '..'")
        if (size := len(name.encode(errors="surrogateescape"))) > LONGEST_NAME:
            raise ValueError(f"has {size} bytes, but becomes a folder's name, which has at most {LONGEST_NAME}")
        return name

    @property
    def folder(self) -> Path:
        """The run's folder, `output_dir/name`."""
        return self.output_dir / self.name


class ParallelSection(Section):
    """The `parallel` section: sizes of the topology."""

    tensor: Positive = Field(1, description="ranks that share the heads and neurons of every layer")
    pipeline: Positive = Field(1, description="stages the layers are cut into")
    segment: Positive = Field(1, description="ranks that share the segments of one sample (1: not shared)")
    sequence: bool = Field(
        False, description="split norms and residual stream by tokens over the tensor ranks (sequence parallelism)"
    )


class LearningRate(Section):
    """The learning rate of a phase as a function of its tokens: warmup, then constant and decay (wsd) or cosine."""

    schedule: Literal["wsd", "cosine"] = Field("wsd", description="wsd: warmup-stable-decay; cosine: warmup-cosine")
    peak: float = Field(gt=0, description="highest learning rate")
    warmup_tokens: int = Field(0, ge=0, description="tokens of linear warmup from 0")
    decay_tokens: int = Field(0, ge=0, description="wsd: tokens of linear decay at the phase's end")
    final_fraction: Fraction = Field(0.1, description="last learning rate as a fraction of the peak")


class Phase(Section):
    """One entry of `phases`: what is trained, for how long, on what and from which weights."""

    name: str = Field(min_length=1, description="name of the phase in logs and plots")
    memory: bool = Field(description="on: the memories are computed and trained, references are read; off: plain Llama")
    tokens: Positive = Field(description="length of the phase, tokens (rounded up to whole steps)")
    tokens_per_step: Positive = Field(description="global batch, tokens; a multiple of data.sequence_length")
    lr: LearningRate
    trains: Literal["all", "memory"] = Field("all", description="parameters that are updated")
    mix: Weights | None = Field(None, description="source weights in this phase; default data.mix")
    init_from: str = Field("previous", description="previous | scratch | hf:FOLDER | checkpoint:FOLDER")

    @field_validator("init_from")
    @classmethod
    def _known_origin(cls, value: str) -> str:
        kind, _, path = value.partition(":")
        if not (value in ("previous", "scratch") or (kind in ("hf", "checkpoint") and path)):
            raise ValueError("must be previous, scratch, hf:FOLDER or checkpoint:FOLDER")
        return value if not path or is_remote(path) else f"{kind}:{local_path(path)}"

    @model_validator(mode="after")
    def _fits(self) -> "Phase":
        if self.trains == "memory" and not self.memory:
            raise ValueError("trains 'memory' needs memory: on")
        if self.lr.warmup_tokens + self.lr.decay_tokens > self.tokens:
            raise ValueError(
                f"lr.warmup_tokens {self.lr.warmup_tokens:,} + lr.decay_tokens {self.lr.decay_tokens:,} exceed the "
                f"phase's tokens {self.tokens:,}: shorten them"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of optimizer steps, rounded up."""
        return -(-self.tokens // self.tokens_per_step)


class TrainingSection(Section):
    """The `training` section: batch, precision, memory saving, optimizer and evaluation."""

    micro_batch_size: Positive = Field(description="samples a rank computes at once")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 keeps fp32 master weights and accumulation")
    zero_stage: Literal[1, 2, 3] = Field(1, description="1: shards optimizer state; 2: gradients too; 3: weights too")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="optimizer: its state is kept in CPU memory (ZeRO 1-3); all: the weights too (ZeRO 3)"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="what the backward pass recomputes: none; selective: attention and memory; full: whole layers",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile decoder layers and loss, where that is possible; auto: on a GPU, not on a CPU"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW beta1, beta2")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decay of matrices; norms, biases and gates have none")
    gradient_clipping: float = Field(1.0, gt=0, description="largest global gradient norm")
    eval_every_steps: Positive | None = Field(None, description="validate every so many steps; always at phase ends")
    eval_samples: Positive = Field(64, description="validation samples, from the start of the validation split")
    stop_after_steps: Positive | None = Field(None, description="save and stop after step N of the run (exit 75)")


class CheckpointSection(Section):
    """The `checkpoint` section: when checkpoints are written and which are kept."""

    every_steps: Positive = Field(100, description="write a checkpoint every so many steps, and at every phase's end")
    asynchronous: bool = Field(
        True, description="write while training goes on, from a copy of each rank's share in CPU memory"
    )
    keep_last: Positive = Field(2, description="number of newest checkpoints that are kept")
    keep_every_steps: Positive | None = Field(None, description="never delete checkpoints at multiples of this step")


class FaultConfig(Section):
    """Limits for non-finite steps, loss spikes, slow ranks and hangs."""

    nonfinite_steps: int = Field(
        3,
        ge=0,
        description="the run stops when more than so many of 100 consecutive steps have a loss or gradient norm that "
        "is not finite; the updates of such steps are left out",
    )
    spike_factor: float | None = Field(
        None,
        gt=1,
        description="a loss above this times the median of the last 50 losses sends the run back to its last "
        "checkpoint, and the steps that led to it are skipped; null: never",
    )
    spike_skips: int = Field(1, ge=1, description="how many steps are skipped, of which that of the spike is the last")
    rollbacks: int = Field(3, ge=0, description="how often one start of a run goes back before it stops")
    slow_factor: float = Field(
        2.0, gt=1, description="name a rank that computes more than so many times longer than the others of its stage"
    )
    hang_seconds: float = Field(
        1800, ge=2, description="a rank without progress for so many seconds dumps its stacks and ends the job"
    )
