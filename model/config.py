"""Shape of the model and of its memory.  Every field is checked when the object is made."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class RopeScaling(BaseModel):
    """Llama-3's frequency-dependent stretching of RoPE (`rope_type: llama3` in Hugging Face configs)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "lm2", "delta"] = Field(
        "none", description="none: plain Llama; lm2: gated slot memory; delta: associative matrix memory"
    )
    flow: Literal["time"] | None = Field(
        None, description="lm2: 'time' = a bank per block, read before write, all segments in parallel (default)"
    )
    slots: Positive = Field(64, description="N, memory slots per head and block")
    heads: Positive = Field(4, description="memory heads; hidden_size/heads is the width of a slot")
    layers: Literal["all"] | Positive | tuple[int, ...] = Field(
        "all", description="blocks that host a memory: all, the first k (a number), or a list of block indices"
    )

    @model_validator(mode="after")
    def _flow_fits_kind(self) -> "MemoryConfig":
        if self.kind != "lm2" and self.flow is not None:
            raise ValueError(
                f"flow '{self.flow}' means nothing to kind '{self.kind}': remove flow, or set kind: lm2"
            )
        return self

    def hosts(self, num_layers: int) -> frozenset[int]:
        """Indices of the decoder layers that host a memory (empty for kind `none`)."""
        if self.kind == "none":
            return frozenset()
        if self.layers == "all":
            return frozenset(range(num_layers))
        if isinstance(self.layers, int):
            return frozenset(range(self.layers))
        return frozenset(self.layers)


class ModelConfig(BaseModel):
    """A Llama-3-style decoder and its memory.

    Raises `pydantic.ValidationError` (a `ValueError`) naming the field, the value and the rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    memory: MemoryConfig = Field(default_factory=MemoryConfig)

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

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
        problems += self._memory_problems()
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
        outside = sorted(i for i in memory.hosts(self.num_layers) if not 0 <= i < self.num_layers)
        if outside:
            problems.append(
                f"memory.layers {memory.layers} names blocks {outside}, but num_layers is {self.num_layers}: "
                f"use indices 0..{self.num_layers - 1}, a count up to {self.num_layers}, or 'all'"
            )
        return problems
