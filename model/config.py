"""Configuration of the model and its memory. Every field is checked when an object is made."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from model.backbone import BackboneConfig, Positive, RopeScaling
from model.memory.registry import parallel_kinds
from model.memory.spec import MemoryConfig

__all__ = ["ExplicitConfig", "MemoryConfig", "ModelConfig", "RopeScaling"]

Layers = Literal["all", "half"] | Annotated[int, Field(gt=0, strict=True)] | tuple[int, ...]


class ExplicitConfig(BaseModel):
    """Explicit memory (Memory3, arXiv 2407.01178): chunks of the context attend to references.

    A reference is written as a few keys and values for each head. Explicit memory has no parameters of its own.
    """

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
    chunk_length: Positive = Field(64, description="tokens of a chunk, which retrieves references and reads them")
    references: Positive = Field(
        5, description="references a chunk sees; in training one from each of that many chunks, the last its own"
    )
    causal: bool = Field(
        True,
        description="training: a chunk reads what earlier chunks retrieved; false: as published, also the reference "
        "that its own tokens retrieved",
    )

    def memory_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the indices of the memory layers, in order."""
        match self.layers:
            case "half":
                return tuple(range((num_layers + 1) // 2))
            case "all":
                return tuple(range(num_layers))
            case int():
                return tuple(range(self.layers))
        return tuple(sorted(set(self.layers)))

    def heads(self, num_kv_heads: int) -> tuple[int, ...]:
        """Return the indices of the key/value heads with memory, in order."""
        return tuple(range(num_kv_heads)) if self.kv_heads == "all" else tuple(sorted(set(self.kv_heads)))


class ModelConfig(BackboneConfig):
    """A Llama-3-style decoder and its memory.

    Raises `pydantic.ValidationError` (a `ValueError`) naming the field, the value and the rule.
    """

    # SerializeAsAny writes the fields of the memory's kind, not those of the common base class alone
    memory: SerializeAsAny[MemoryConfig] = Field(default_factory=MemoryConfig)
    explicit: ExplicitConfig | None = Field(None, description="explicit memory beside `memory`; null: none")

    @property
    def has_memory(self) -> bool:
        """Whether the model has a memory that a phase can turn on."""
        return self.memory.exists or self.explicit is not None

    @property
    def memory_name(self) -> str:
        """The kinds of memory, for messages: `lm2`, `none + explicit`."""
        return self.memory.kind + (" + explicit" if self.explicit else "")

    @property
    def num_slots(self) -> int:
        """N, the slots of a memory's bank, with the kind's default."""
        return self.memory.num_slots(self)

    @model_validator(mode="after")
    def _shapes_fit(self) -> "ModelConfig":
        problems = self.backbone_problems() + self.memory.problems(self) + self._explicit_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _explicit_problems(self) -> list[str]:
        explicit, problems = self.explicit, []
        if explicit is None:
            return []
        if self.memory.sequential:
            problems.append(
                f"explicit with memory {self.memory.title}: this memory computes segments one after the other, but "
                f"explicit memory needs all at once; use one of these memories: {parallel_kinds()}"
            )
        if self.segment_length % explicit.chunk_length:
            problems.append(
                f"explicit.chunk_length {explicit.chunk_length} must divide segment_length {self.segment_length}: a "
                "chunk lies in one segment"
            )
        if explicit.tokens > explicit.reference_length:
            problems.append(
                f"explicit.tokens {explicit.tokens} must not exceed the tokens of a reference, "
                f"explicit.reference_length {explicit.reference_length}: lower explicit.tokens"
            )
        lists = {
            "layers": (explicit.memory_layers(self.num_layers), self.num_layers, "num_layers"),
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
