"""Configuration of the decoder without its memory, as a memory kind sees it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class RopeScaling(BaseModel):
    """Llama-3's frequency-dependent scaling of RoPE (`rope_type: llama3` in Hugging Face configurations)."""

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


class BackboneConfig(BaseModel):
    """A Llama-3-style decoder."""

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

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    def initial_std(self, fan_in: int) -> float:
        """Return the standard deviation of a matrix that sums over `fan_in` inputs: `init_std`, or 1/sqrt(fan_in).

        With 1/sqrt(fan_in), inputs of variance 1 give outputs of variance 1 at any width. At hidden size 2,048 it is
        0.022, as in large Llamas; a fixed 0.02 is several times too small for models of width 64 to 256.
        """
        return self.init_std or fan_in**-0.5

    def backbone_problems(self) -> list[str]:
        """Return the broken rules between these fields, each with its way out."""
        problems = []
        if self.head_dim is None and self.hidden_size % self.num_heads:
            problems.append(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} (or set head_dim)"
            )
        elif self.head_width % 2:
            problems.append(f"head width {self.head_width} must be even for RoPE: change num_heads or head_dim")
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        return problems
