"""The one file that describes a run: sections, rules between them, and reading it with overrides.

All problems are reported at once, each as `field: value, rule, way out`, before anything starts.
"""

import copy
import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_prep import DataConfig
from data_prep.references import CHUNK
from model import ModelConfig
from training.errors import ConfigError
from training.logs import without_secrets
from training.tracking import TrackingConfig


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # Python would take yes for 1
        raise ValueError("is yes or no, but must be a number")
    return value


def _yaml_switch(value: Any) -> Any:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML's on and off


Positive = Annotated[int, BeforeValidator(_no_bool), Field(gt=0)]
Weights = dict[str, Annotated[float, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSection(Section):
    name: str = Field(min_length=1, description="name of the run and of its folder below output_dir")
    output_dir: Path = Field(Path("runs"), description="folder of all runs")
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the data order")

    @field_validator("name", mode="before")
    @classmethod
    def _number_as_text(cls, name: Any) -> Any:
        return str(name) if isinstance(name, int) and not isinstance(name, bool) else name

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if "/" in name or "\0" in name or name in (".", ".."):
            raise ValueError("must be the name of one folder: no '/', not '.' or '..'")
        return name

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name


class ParallelSection(Section):
    tensor: Positive = Field(1, description="ranks that share the heads and neurons of every layer")
    pipeline: Positive = Field(1, description="stages the layers are cut into")
    segment: Positive = Field(1, description="ranks that share the segments of one sample (1: not shared)")
    sequence: bool = Field(
        False, description="norms and residual stream split by tokens over the tensor ranks (sequence parallelism)"
    )


class LearningRate(Section):
    """Warmup, then constant and decay (wsd) or cosine; a pure function of the phase's tokens."""

    schedule: Literal["wsd", "cosine"] = Field("wsd", description="wsd: warmup-stable-decay; cosine: warmup-cosine")
    peak: float = Field(gt=0, description="highest learning rate")
    warmup_tokens: int = Field(0, ge=0, description="tokens of linear warmup from 0")
    decay_tokens: int = Field(0, ge=0, description="wsd: tokens of linear decay at the phase's end")
    final_fraction: Fraction = Field(0.1, description="last learning rate as a fraction of the peak")


class Phase(Section):
    name: str = Field(min_length=1, description="what logs and plots call it")
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
        return value

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
        return -(-self.tokens // self.tokens_per_step)


class TrainingSection(Section):
    micro_batch_size: Positive = Field(description="samples a rank computes at once")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 keeps fp32 master weights and accumulation")
    zero_stage: Literal[1, 2, 3] = Field(1, description="1: shards optimizer state; 2: gradients too; 3: weights too")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="optimizer: its state lives in CPU memory (ZeRO 1-3); all: the weights too (ZeRO 3)"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="recomputed in the backward pass: selective: attention and memory; full: whole layers"
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_yaml_switch)] = Field(
        "auto", description="decoder layers and loss compiled, where they can be; auto: on a GPU, not on a CPU"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW beta1, beta2")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decay of matrices; norms, biases and gates have none")
    gradient_clipping: float = Field(1.0, gt=0, description="largest global gradient norm")
    eval_every_steps: Positive | None = Field(None, description="validation every so many steps; always at phase ends")
    eval_samples: Positive = Field(64, description="validation samples, from the start of the validation split")
    stop_after_steps: Positive | None = Field(None, description="stop, saved, once the run has so many steps (exit 75)")


class CheckpointSection(Section):
    every_steps: Positive = Field(100, description="a checkpoint every so many steps, and at every phase's end")
    asynchronous: bool = Field(
        True, description="written beside training from a copy of each rank's share in CPU memory"
    )
    keep_last: Positive = Field(2, description="newest checkpoints that are kept")
    keep_every_steps: Positive | None = Field(None, description="checkpoints at multiples of this are kept for ever")


class FaultConfig(Section):
    """What a run does about bad steps and ranks."""

    nonfinite_steps: int = Field(
        3,
        ge=0,
        description="steps among any 100 in a row whose loss or gradient norm is not finite, and whose update is "
        "therefore left out, before the run stops",
    )
    spike_factor: float | None = Field(
        None,
        gt=1,
        description="a loss above this times the median of the last 50 sends the run back to its last checkpoint, and "
        "the steps that led to it are passed over; null: never",
    )
    spike_skips: int = Field(1, ge=1, description="steps passed over, the last being the one of the spike")
    rollbacks: int = Field(3, ge=0, description="times that one start of a run goes back before it stops")
    slow_factor: float = Field(
        2.0, gt=1, description="a rank that computes so many times longer than the others of its stage is named"
    )
    hang_seconds: float = Field(
        1800, ge=2, description="a rank without progress for so long dumps its stacks and ends the job"
    )


class RunConfig(Section):
    """Everything a run is."""

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
        return sum(phase.steps for phase in self.phases)

    @property
    def total_tokens(self) -> int:
        return sum(phase.steps * phase.tokens_per_step for phase in self.phases)

    def problems(self) -> list[str]:
        """Rules between sections that this configuration breaks; none when it was validated, unlike a changed copy."""
        return _problems(self)

    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on; a run's folder can be continued while this stays the same."""
        full = self.model_dump(mode="json")
        training = ("precision", "betas", "eps", "weight_decay", "gradient_clipping")
        return {
            "run": {"seed": self.run.seed},
            "data": {key: full["data"][key] for key in ("sequence_length", "mix")},  # the tokens: by fingerprint
            "model": full["model"],
            "phases": full["phases"],
            "training": {key: full["training"][key] for key in training},
        }


def _problems(config: RunConfig) -> list[str]:
    """Rules between sections, each with its way out."""
    names = [phase.name for phase in config.phases]
    repeated = [f"phases: the names {names} must differ; rename one"] if len(set(names)) < len(names) else []
    phases = [p for index in range(len(config.phases)) for p in _phase_problems(config, index)]
    return _parallel_problems(config) + phases + repeated


def _parallel_problems(config: RunConfig) -> list[str]:
    model, parallel, stage, problems = config.model, config.parallel, config.training.zero_stage, []
    shards = {name: getattr(model, name) for name in ("num_heads", "num_kv_heads", "ffn_size", "vocab_size")}
    if model.memory.kind != "none":
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
    if parallel.pipeline > 1 and model.memory.in_turn:
        problems += _in_turn_problems(config)
    problems += _sequence_problems(config) + _segment_problems(config) + _explicit_problems(config)
    if parallel.pipeline > 1 and stage > 1:
        problems.append(
            f"training.zero_stage: {stage} with parallel.pipeline {parallel.pipeline}; DeepSpeed's pipeline needs "
            "whole gradients, so set training.zero_stage=1 or parallel.pipeline=1"
        )
    if config.training.offload == "all" and stage < 3:
        problems.append(f"training.offload: all moves weights too, which needs training.zero_stage=3, not {stage}")
    if config.training.offload != "none" and parallel.pipeline > 1:
        problems.append(
            f"training.offload: {config.training.offload} with parallel.pipeline {parallel.pipeline}; set "
            "training.offload=none or parallel.pipeline=1"
        )
    return problems


def _sequence_problems(config: RunConfig) -> list[str]:
    """Sequence parallelism: every tensor rank keeps an equal share of a sample's tokens."""
    parallel, length = config.parallel, config.data.sequence_length
    if not parallel.sequence or parallel.tensor == 1:
        return []
    if config.model.memory.in_turn:
        return [
            f"parallel.sequence: on with memory {_kind(config)}, whose segments are computed one after the other, "
            "each by all tensor ranks; set parallel.sequence=false"
        ]
    own = length // parallel.segment
    if own % parallel.tensor:
        return [
            f"parallel.sequence: {own} tokens cannot be split evenly over parallel.tensor {parallel.tensor}; "
            f"set data.sequence_length to a multiple of {parallel.tensor * parallel.segment} or parallel.sequence=false"
        ]
    return []


def _segment_problems(config: RunConfig) -> list[str]:
    """Segment parallelism: every rank of a group owns as many whole segments, and only banks pass between them."""
    size, model, length = config.parallel.segment, config.model, config.data.sequence_length
    if size == 1:
        return []
    problems = []
    if model.memory.in_turn:
        problems.append(
            f"parallel.segment: {size} with memory {_kind(config)}, whose segments can only be computed one after the "
            "other; set parallel.segment=1, or memory lm2 flow: time or delta"
        )
    if model.attention_span > 1:
        problems.append(
            f"parallel.segment: {size} with model.attention_span {model.attention_span}: attention would cross ranks; "
            "set model.attention_span=1 or parallel.segment=1"
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
    """Explicit memory: what travels behind the tokens is not split by tokens, and its chunks are the table's."""
    explicit, parallel, problems = config.model.explicit, config.parallel, []
    if explicit is None:
        return []
    if parallel.sequence and parallel.tensor > 1:
        problems.append(
            "parallel.sequence: on with model.explicit, whose references travel whole behind the tokens; set "
            "parallel.sequence=false"
        )
    if parallel.segment > 1:
        problems.append(
            f"parallel.segment: {parallel.segment} with model.explicit: a chunk reads what chunks of the rank before "
            "found; set parallel.segment=1"
        )
    if config.data.references and explicit.chunk_length != CHUNK:
        problems.append(
            f"model.explicit.chunk_length: {explicit.chunk_length}, but the tables of data.references have what every "
            f"{CHUNK} tokens found; set it to {CHUNK}"
        )
    return problems


def _kind(config: RunConfig) -> str:
    return "rmt" if config.model.memory.kind == "rmt" else "lm2 flow: depth"


def _in_turn_problems(config: RunConfig) -> list[str]:
    """A segment's memory comes from the last stage, which the first would wait for."""
    model, length = config.model, config.data.sequence_length
    if model.memory.kind == "lm2" and length <= model.segment_length:
        return []
    what, way_out = _kind(config), "set parallel.pipeline=1"
    if what != "rmt":
        way_out += f" or data.sequence_length to at most {model.segment_length}"
    return [
        f"parallel.pipeline: {config.parallel.pipeline} with memory {what} and samples of {length} tokens in segments "
        f"of {model.segment_length}: a segment begins with what the last stage made of the one before; {way_out}"
    ]


def _phase_problems(config: RunConfig, index: int) -> list[str]:
    phase, where, problems = config.phases[index], f"phases.{index}", []
    if phase.tokens_per_step % config.data.sequence_length:
        problems.append(
            f"{where}.tokens_per_step: {phase.tokens_per_step} is no multiple of data.sequence_length "
            f"{config.data.sequence_length}; use a multiple"
        )
    if phase.memory and not config.model.has_memory:
        problems.append(
            f"{where}.memory: on, but model.memory.kind is none and there is no model.explicit; set one or memory: off"
        )
    if phase.memory and config.model.explicit and config.data.references is None:
        problems.append(
            f"{where}.memory: on with model.explicit, but data.references is missing, the folder of references and of "
            "what each chunk found; set it (launchers/prepare_data.py makes it) or memory: off"
        )
    if phase.trains == "memory" and config.model.memory.kind == "none":
        problems.append(f"{where}.trains: memory, but explicit memory has no parameters of its own; set trains: all")
    fresh = phase.init_from == "scratch" or (index == 0 and phase.init_from == "previous")
    if fresh and phase.trains == "memory":
        problems.append(f"{where}.trains: memory alone cannot train on a fresh backbone; set init_from")
    if phase.trains == "memory" and config.parallel.pipeline > 1:
        problems.append(
            f"{where}.trains: memory with parallel.pipeline {config.parallel.pipeline}; a stage whose layers all stay "
            "as they are has nothing to send back, so set parallel.pipeline=1"
        )
    drops = index > 0 and config.phases[index - 1].memory and not phase.memory and phase.init_from == "previous"
    if drops and config.model.memory.kind != "none":  # explicit memory has nothing that could be dropped
        problems.append(f"{where}.memory: off after an on phase would drop the trained memory; set memory: on")
    return problems


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, check everything.

    Raises `ConfigError` that lists every problem.
    """
    raw, problems = read_yaml(path), []
    for override in overrides:
        try:
            apply_override(raw, override)
        except ConfigError as error:
            problems.append(str(error))
    try:
        config = parse_config(raw)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (where, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key '{key}' stands there twice, line {where.start_mark.line + 1}; remove one")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections a file holds; raises `ConfigError` naming it when it cannot be read as such."""
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(
            f"--config: {path} does not exist; pass a YAML file such as configs/quickstart.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"--config: {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"--config: {path} holds {type(raw).__name__}, but must hold sections (run:, data:, model:, …)"
        )
    return raw


def parse_config(raw: dict[str, Any]) -> RunConfig:
    """Check a configuration given as nested dictionaries; raises `ConfigError` that lists every problem."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        found = error.errors()
    # pydantic takes a list whose elements all failed for an empty one
    found = [e for e in found if e["type"] != "too_short" or len([o for o in found if o["loc"][:1] == e["loc"]]) == 1]
    lines = [explain(problem) for problem in found]
    raise ConfigError("\n".join(lines + _hidden_problems(raw, [e["loc"] for e in found])))


def _hidden_problems(raw: dict[str, Any], wrong: list[tuple[int | str, ...]]) -> list[str]:
    """Rules between sections, which pydantic tries only once every field is right by itself: the wrong fields are
    taken out, so that their defaults stand in for them."""
    if () in wrong:
        return []
    trial = copy.deepcopy(raw)
    for location in wrong:
        node: Any = trial
        for part in location[:-1]:
            node = node[part] if _has(node, part) else {}
        if isinstance(node, dict) and isinstance(node.pop(location[-1], None), dict | list):
            return []  # a whole section is wrong in itself: nothing to compare the others with
    try:
        RunConfig.model_validate(trial)
    except ValidationError as error:
        return [explain(e) for e in error.errors() if e["loc"] == () and e["type"] == "value_error"]
    return []


def _has(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set what `section.key=value` names in nested dictionaries and lists; raises `ConfigError`."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override: '{override}' must have the form section.key=value, such as parallel.tensor=2")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        if text.startswith(("[", "{")):  # a list or a section was meant
            way = "close its brackets, and quote the whole override for the shell"
            raise ConfigError(f"override: '{override}': what follows = is no YAML; {way}") from None
        value = text
    node: Any = raw
    for part in parts[:-1]:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], dict | list):
        raise ConfigError(f"override: '{override}': '{part}' holds {node[part]!r}, not a section; drop what follows it")
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
        raise ConfigError(f"override: '{override}': '{part}' must be a number from 0 to {len(node) - 1} (a list)")
    return int(part)


def explain(problem: Any, root: type[BaseModel] | None = None) -> str:
    """One pydantic error of `root` (default: a run's configuration) as `field: value, rule, way out`."""
    where = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(problem["loc"][:-1], root or RunConfig)
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
            return f"{where}: unknown key; {hint}"
        case "missing":
            return f"{where}: missing; set it in the file or with {where}=VALUE"
        case "value_error":
            text = str(problem["ctx"]["error"])
            return text if not where else f"{where}: {_shown(problem['input'])}{text}"
    return f"{where}: {problem['input']!r} is refused: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shown(value: Any) -> str:
    return f"{value!r} " if isinstance(value, str | int | float) else ""


def _known_keys(path: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """Keys of the section of `root` at `path`, found by walking the field types."""
    model: type[BaseModel] | None = root
    for part in path:
        if model is None or isinstance(part, int) or part not in model.model_fields:
            continue  # list positions and union tags stand for no field
        model = _section_of(model.model_fields[part].annotation)
    return list(model.model_fields) if model else []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, dict, Union, types.UnionType, Annotated):
        return next((found for a in get_args(annotation) if (found := _section_of(a))), None)
    return None


def dump_yaml(config: RunConfig, without_password: bool = False) -> str:
    """The resolved configuration, loadable again; what is kept in files has no password in its addresses."""
    resolved = config.model_dump(mode="json")
    return yaml.safe_dump(
        without_secrets(resolved) if without_password else resolved, sort_keys=False, allow_unicode=True
    )
