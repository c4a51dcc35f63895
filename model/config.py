"""Shape of the model and of its memory.  Every field is checked when the object is made."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]


class RopeScaling(BaseModel):
    """Llama-3's frequency-dependent stretching of RoPE (`rope_type: llama3` in Hugging Face configs)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    factor: float = Field(gt=1, description="how much longer than the original context")
    low_freq_factor: float = Field(1.0, gt=0, description="wavelengths above original/this are stretched fully")
    high_freq_factor: float = Field(4.0, gt=0, description="wavelengths below original/this are left alone")
    original_max_position: int = Field(8192, gt=0, description="context the unscaled model was trained on, tokens")

    @model_validator(mode="after")
    def _ordered(self) -> "RopeScaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )
        return self


class MemoryConfig(BaseModel):
    """The memory hosted by the decoder layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["none", "lm2", "delta", "rmt"] = Field(
        "none", description="none: Llama; lm2: gated slots; delta: associative matrices; rmt: memory vectors"
    )
    flow: Literal["time", "depth"] | None = Field(
        None, description="lm2: time (default) = a bank per block, all segments at once; depth = as published"
    )
    slots: Positive | None = Field(
        None, description="lm2 time: slots per head (default 64); lm2 depth: segment_length; rmt: vectors (default 16)"
    )
    heads: Positive = Field(4, description="memory heads; hidden_size/heads is the width of a slot")
    top_k: Positive | None = Field(None, description="lm2 depth: slots a token keeps of its softmax; default all")
    bptt_segments: Positive | None = Field(
        None, description="lm2 depth, rmt: the carried memory is detached every so many segments; default never"
    )
    rmt_open: float = Field(0.0, ge=0, description="rmt: initial weight of memory keys; 1 is the published model")
    sparse_writes: bool = Field(
        False,
        description="delta: the input gate reaches exactly 0, and a token forgets in proportion to what it writes, so "
        "text that is not worth writing leaves the memory as it is, however long it is",
    )
    layers: Literal["all"] | Annotated[int, Field(gt=0, strict=True)] | tuple[int, ...] = Field(
        "all", description="blocks that host a memory: all, the first k (a number), or a list of block indices"
    )

    @field_validator("layers", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValueError:
            raise ValueError("must be all, a count of first blocks, or a list of block indices") from None

    @model_validator(mode="after")
    def _flow_fits_kind(self) -> "MemoryConfig":
        only = {"top_k": self.is_depth, "bptt_segments": self.in_turn, "rmt_open": self.kind == "rmt"}
        only["sparse_writes"] = self.kind == "delta"
        for name, fits in only.items():
            if not fits and getattr(self, name) not in (None, 0.0, False):
                kind = f"kind '{self.kind}'" + (f" flow '{self.flow or 'time'}'" if self.kind == "lm2" else "")
                raise ValueError(f"{name} {getattr(self, name)} means nothing to {kind}: remove it")
        if self.kind != "lm2" and self.flow is not None:
            raise ValueError(f"flow '{self.flow}' means nothing to kind '{self.kind}': remove flow, or set kind: lm2")
        return self

    @property
    def is_depth(self) -> bool:
        """Whether this is the published LM2, whose bank threads through the blocks."""
        return self.kind == "lm2" and self.flow == "depth"

    @property
    def in_turn(self) -> bool:
        """Whether segments can only be computed one after the other."""
        return self.is_depth or self.kind == "rmt"

    def hosts(self, num_layers: int) -> frozenset[int]:
        """Indices of the decoder layers that host a memory (empty for kind `none`)."""
        if self.kind == "none":
            return frozenset()
        if self.layers == "all":
            return frozenset(range(num_layers))
        if isinstance(self.layers, int):
            return frozenset(range(self.layers))
        return frozenset(self.layers)


Layers = Literal["all", "half"] | Annotated[int, Field(gt=0, strict=True)] | tuple[int, ...]


class ExplicitConfig(BaseModel):
    """Explicit memory (Memory3, arXiv 2407.01178): references, written as a few keys and values a head, that the
    chunks of the context attend to.  It has no parameters of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bos: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="token ids of '<s>Reference:', before every reference and, as an attention sink, before the "
        "context; empty: taken from the data's tokenizer when a run starts",
    )
    layers: Layers = Field(
        "half", description="memory layers: half (the first), all, the first k (a number), or a list of block indices"
    )
    kv_heads: Literal["all"] | tuple[int, ...] = Field(
        "all", description="key/value heads with memory: all, or a list of their indices"
    )
    reference_length: Positive = Field(128, description="tokens of a reference at most")
    tokens: Positive = Field(8, description="k, tokens of a reference whose key and value a head keeps")
    selection: Literal["softmax", "exp"] = Field(
        "softmax", description="received attention: softmax weights, or exp of the scores as in the published run"
    )
    chunk_length: Positive = Field(64, description="tokens of a chunk, which finds references and reads them")
    references: Positive = Field(
        5, description="references a chunk sees; in training those of as many chunks, one each"
    )
    causal: bool = Field(
        True,
        description="training: a chunk reads what earlier chunks found; false: as published, its own find too, which "
        "its own tokens were the query for",
    )

    def hosts(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the memory layers, in order."""
        match self.layers:
            case "half":
                return tuple(range((num_layers + 1) // 2))
            case "all":
                return tuple(range(num_layers))
            case int():
                return tuple(range(self.layers))
        return tuple(sorted(set(self.layers)))

    def heads(self, num_kv_heads: int) -> tuple[int, ...]:
        """Indices of the key/value heads with memory, in order."""
        return tuple(range(num_kv_heads)) if self.kv_heads == "all" else tuple(sorted(set(self.kv_heads)))


class ModelConfig(BaseModel):
    """A Llama-3-style decoder and its memory.

    Raises `pydantic.ValidationError` (a `ValueError`) naming the field, the value and the rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    vocab_size: Positive = Field(description="V, rows of the embedding; a multiple of parallel.tensor")
    hidden_size: Positive = Field(description="D, width of the residual stream")
    num_layers: Positive = Field(description="decoder layers")
    num_heads: Positive = Field(
        description="query heads; hidden_size/num_heads is the head width unless head_dim is set"
    )
    num_kv_heads: Positive = Field(description="key/value heads (GQA); divides num_heads")
    ffn_size: Positive = Field(description="inner width of SwiGLU")
    segment_length: Positive = Field(description="T, tokens of a segment: attention is local to it, memory crosses it")
    attention_span: Positive = Field(1, description="segments a token attends to, its own included")
    head_dim: Positive | None = Field(None, description="width of an attention head; default hidden_size/num_heads")
    rope_theta: float = Field(500000.0, gt=0, description="RoPE base")
    rope_scaling: RopeScaling | None = Field(None, description="Llama-3 RoPE scaling; none by default")
    norm_eps: float = Field(1e-5, gt=0, description="RMSNorm epsilon")
    tie_embeddings: bool = Field(False, description="output head shares the embedding's weight")
    init_std: float | None = Field(
        None, gt=0, description="standard deviation of the initial weights; null: 1/sqrt(fan-in) of each matrix"
    )
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    explicit: ExplicitConfig | None = Field(None, description="explicit memory beside `memory`; null: none")

    @property
    def has_memory(self) -> bool:
        """Whether a phase's `memory: on` turns anything on."""
        return self.memory.kind != "none" or self.explicit is not None

    @property
    def memory_name(self) -> str:
        """The kinds of memory, for people: `lm2`, `none + explicit`."""
        return self.memory.kind + (" + explicit" if self.explicit else "")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    def initial_std(self, fan_in: int) -> float:
        """Standard deviation of a matrix that sums over `fan_in` inputs: `init_std`, or by width, 1/sqrt(fan_in).

        A normalised input of variance 1 then gives outputs of variance 1 at any width.  At hidden size 2,048 it is
        0.022, what large Llamas use; a fixed 0.02 is several times too small for models of width 64 to 256.
        """
        return self.init_std or fan_in**-0.5

    @property
    def slots(self) -> int:
        """Memory slots (or vectors, for rmt), with each kind's default."""
        if self.memory.is_depth:
            return self.segment_length
        return self.memory.slots or (16 if self.memory.kind == "rmt" else 64)

    @model_validator(mode="after")
    def _shapes_fit(self) -> "ModelConfig":
        problems = []
        if self.head_dim is None and self.hidden_size % self.num_heads:
            problems.append(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} (or set head_dim)"
            )
        elif self.head_width % 2:
            problems.append(f"head width {self.head_width} must be even for RoPE: change num_heads or head_dim")
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        problems += self._memory_problems() + self._explicit_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _memory_problems(self) -> list[str]:
        problems: list[str] = []
        memory = self.memory
        if memory.kind == "none":
            return problems
        if self.hidden_size % memory.heads:
            problems.append(
                f"memory.heads {memory.heads} must divide hidden_size {self.hidden_size}: a head's slots are "
                "hidden_size/heads wide"
            )
        if memory.is_depth and memory.slots not in (None, self.segment_length):
            problems.append(
                f"memory.slots {memory.slots} must equal segment_length {self.segment_length} with flow 'depth': "
                "slot t is token t's; leave memory.slots out, or use flow: time"
            )
        if memory.in_turn and self.attention_span > 1:
            problems.append(
                f"attention_span {self.attention_span} with memory {memory.kind} {memory.flow or ''}: segments are "
                "computed one after the other and see only themselves; set attention_span to 1"
            )
        if memory.kind == "rmt" and memory.layers != "all":
            problems.append("memory.layers: rmt's vectors pass through every block; set memory.layers to all")
        outside = sorted(i for i in memory.hosts(self.num_layers) if not 0 <= i < self.num_layers)
        if outside:
            problems.append(
                f"memory.layers {memory.layers} names blocks {outside}, but num_layers is {self.num_layers}: "
                f"use indices 0..{self.num_layers - 1}, a count up to {self.num_layers}, or 'all'"
            )
        return problems

    def _explicit_problems(self) -> list[str]:
        explicit, problems = self.explicit, []
        if explicit is None:
            return []
        if self.memory.in_turn:
            problems.append(
                f"explicit with memory {self.memory.kind} {self.memory.flow or ''}: its segments are computed one "
                "after the other, and references only all at once; use memory none, lm2 flow: time or delta"
            )
        if self.segment_length % explicit.chunk_length:
            problems.append(
                f"explicit.chunk_length {explicit.chunk_length} must divide segment_length {self.segment_length}: a "
                "chunk lies in one segment"
            )
        if explicit.tokens > explicit.reference_length:
            problems.append(
                f"explicit.tokens {explicit.tokens} are more than a reference has, explicit.reference_length "
                f"{explicit.reference_length}: lower explicit.tokens"
            )
        lists = {
            "layers": (explicit.hosts(self.num_layers), self.num_layers, "num_layers"),
            "kv_heads": (explicit.heads(self.num_kv_heads), self.num_kv_heads, "num_kv_heads"),
        }
        for name, (chosen, count, field) in lists.items():
            outside = [i for i in chosen if not 0 <= i < count]
            if outside or not chosen:
                problems.append(
                    f"explicit.{name} {getattr(explicit, name)}: must name at least one of 0..{count - 1} ({field} is "
                    f"{count})" + (f", but names {outside}" if outside else "")
                )
        outside = [i for i in explicit.bos if i >= self.vocab_size]
        if outside:
            problems.append(f"explicit.bos: ids {outside} are not below vocab_size {self.vocab_size}")
        return problems
