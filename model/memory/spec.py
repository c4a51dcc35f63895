"""A memory kind without torch: its configuration, its rules and its costs.

A kind is a subclass of `MemoryConfig` in `model/memory/KIND/spec.py` or in another package (`model.memory.registry`).
Configuration, planning, pipeline and reports use this class alone; `build` makes the layer.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from model.backbone import BackboneConfig, Positive
from model.memory.planning import RankShare, Speeds

if TYPE_CHECKING:
    import torch

    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext


REQUIRED = ("build", "parameters", "weights", "products", "kept", "seconds")  # methods that every kind must have


class MemoryConfig(BaseModel):
    """The memory hosted by the decoder layers; `MemoryConfig(kind=..., ...)` makes an instance of the kind's own class.

    Raises `pydantic.ValidationError` naming the field, the value and the rule; for an unknown kind, the known ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    label: ClassVar[str]  # the name in results, reports and file names
    selects: ClassVar[dict[str, str]]  # values of a configuration that select this class: at least {"kind": "..."}
    caption: ClassVar[str] = ""  # what an interpretation's pictures show, in a sentence or two
    exists: ClassVar[bool] = True  # False: no layer hosts a memory
    sequential: ClassVar[bool] = False  # segments can only be computed one after the other
    needs_documents: ClassVar[bool] = False  # its layer needs document numbers even for a single document
    carry_travels: ClassVar[bool] = False  # a sequential kind that runs in a pipeline, with one segment a sample
    gathers: ClassVar[int] = 0  # collectives, of the residual stream's size, that a layer adds to a forward
    undecayed: ClassVar[tuple[str, ...]] = ()  # names of matrices below `memory` without weight decay

    kind: str = Field("none", description="none, a kind of memory that comes with memtrain, or an installed one")
    slots: Positive | None = Field(
        None, description="lm2 time: slots per head (default 64); lm2 depth: segment_length; rmt: vectors (default 16)"
    )
    heads: Positive = Field(4, description="memory heads; hidden_size/heads is the width of a slot")
    layers: Literal["all"] | Annotated[int, Field(gt=0, strict=True)] | tuple[int, ...] = Field(
        "all", description="blocks that host a memory: all, the first k (a number), or a list of block indices"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            """Take the fields of any kind, which a type checker cannot know."""

    def __new__(cls, *_arguments: Any, **fields: Any) -> Self:
        """Return an instance of the class that `fields` select; Python then calls that class's `__init__`."""
        if cls is MemoryConfig:
            from model.memory.registry import selected  # imported here, because it imports this file

            cls = selected(fields)  # type: ignore[assignment]
        return super().__new__(cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, dict):
            from model.memory.registry import own_fields, selected

            if cls is MemoryConfig:
                return selected(value).model_validate(value)  # type: ignore[return-value]
            value = own_fields(cls, value)
        return handler(value)

    @field_validator("layers", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValueError:
            raise ValueError("must be all, a count of first blocks, or a list of block indices") from None

    # -- configuration ------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The kind as messages name it, in a configuration's words: `lm2 flow: depth`."""
        return " ".join(value if key == "kind" else f"{key}: {value}" for key, value in self.selects.items())

    def memory_layers(self, num_layers: int) -> frozenset[int]:
        """Return the indices of the decoder layers that host a memory."""
        if self.layers == "all":
            return frozenset(range(num_layers))
        if isinstance(self.layers, int):
            return frozenset(range(self.layers))
        return frozenset(self.layers)

    def num_slots(self, model: BackboneConfig) -> int:
        """Return N, the slots of a bank."""
        return self.slots or 64

    def problems(self, model: BackboneConfig) -> list[str]:
        """Return the broken rules between the memory and its model, each with its way out."""
        problems = []
        if model.hidden_size % self.heads:
            problems.append(
                f"memory.heads {self.heads} must divide hidden_size {model.hidden_size}: a head's slots are "
                "hidden_size/heads wide"
            )
        if self.sequential and model.attention_span > 1:
            problems.append(
                f"attention_span {model.attention_span} with memory {self.title}: segments are computed one after the "
                "other and see only themselves; set attention_span to 1"
            )
        outside = sorted(i for i in self.memory_layers(model.num_layers) if not 0 <= i < model.num_layers)
        if outside:
            problems.append(
                f"memory.layers {self.layers} names blocks {outside}, but num_layers is {model.num_layers}: "
                f"use indices 0..{model.num_layers - 1}, a count up to {model.num_layers}, or 'all'"
            )
        return problems

    # -- the layer ----------------------------------------------------------------------------------------------------

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        """Return a decoder layer's memory module, uninitialised; first: it is the first layer that hosts one."""
        raise NotImplementedError

    def first_carry(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Return the carry of the first block, fp32 [B, L, D], for embedded tokens [B, L, D]; for `carry_travels`."""
        raise NotImplementedError(f"memory {self.title} sends nothing through a pipeline")

    def computed_by(
        self, model: BackboneConfig, device: "torch.device", precision: str, segment_ranks: int
    ) -> str | None:
        """Return a line for the log at start on the kernels that compute the memory, or None."""
        return None

    # -- costs of one hosting layer -----------------------------------------------------------------------------------

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        """Return the parameters that are split over the tensor-parallel ranks, and those whole on each of them."""
        raise NotImplementedError

    def weights(self, model: BackboneConfig) -> int:
        """Return the weights that multiply every token: 6 FLOPs each in training."""
        raise NotImplementedError

    def products(self, model: BackboneConfig) -> float:
        """Return the multiply-adds of one token beside those with weights."""
        raise NotImplementedError

    def kept(self, share: RankShare) -> tuple[float, float]:
        """Return the bytes of a token kept for the backward pass: of activations, and of the segments' states."""
        raise NotImplementedError

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        """Return the seconds of one micro-batch, forward and backward."""
        raise NotImplementedError

    def extra_tokens(self, model: BackboneConfig) -> int:
        """Return the vectors of a segment that pass through the whole block like tokens."""
        return 0

    def attention_kept(self, share: RankShare, tokens: float) -> float | None:
        """Return the bytes that the kind's own attention keeps; None: it uses the block's attention."""
        return None

    def state_numbers(self, model: BackboneConfig) -> int:
        """Return the numbers of one sample's state, which segment-parallel ranks send to each other."""
        return 0
