"""Configuration and costs of `rmt`, the Recurrent Memory Transformer. m memory vectors (`slots`), T segment tokens."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from model.backbone import BackboneConfig, Positive
from model.memory.planning import FP32, RankShare, Speeds
from model.memory.spec import MemoryConfig

if TYPE_CHECKING:
    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext


class RMTConfig(MemoryConfig):
    """Fields of `memory.kind: rmt`; docs/memory.md describes the kind."""

    label = "rmt"
    selects: ClassVar[dict[str, str]] = {"kind": "rmt"}
    caption = "The share of a token's attention that each memory vector gets, mean over heads; tokens get the rest."
    sequential = True
    needs_documents = True  # its frame is built from documents
    undecayed = ("tokens",)

    kind: Literal["rmt"]
    bptt_segments: Positive | None = Field(
        None, description="the carried memory is detached every so many segments; default never"
    )
    rmt_open: float = Field(0.0, ge=0, description="initial weight of memory keys; 1 is the published model")

    def num_slots(self, model: BackboneConfig) -> int:
        return self.slots or 16

    def problems(self, model: BackboneConfig) -> list[str]:
        problems = super().problems(model)
        if self.layers != "all":
            problems.append("memory.layers: rmt's vectors pass through every block; set memory.layers to all")
        return problems

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        from model.memory.rmt.module import RMTMemory

        return RMTMemory(self, model, parallel, holds_tokens=first)

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        return model.num_heads, self.num_slots(model) * model.hidden_size if first else 0

    def weights(self, model: BackboneConfig) -> int:
        return 0

    def products(self, model: BackboneConfig) -> float:
        return 0.0

    def extra_tokens(self, model: BackboneConfig) -> int:
        return 3 * self.num_slots(model)  # two sets of read vectors and the write vectors

    def kept(self, share: RankShare) -> tuple[float, float]:
        return 0.0, 0.0

    def attention_kept(self, share: RankShare, tokens: float) -> float | None:
        """See `MemoryConfig.attention_kept`: scores are kept twice in fp32 and once in the tokens' dtype."""
        model, a, t = share.model, share.item, share.tensor
        keys = share.segment + self.extra_tokens(model)
        scores = keys * model.num_heads / t * (2 * FP32 + a + FP32 / share.batch)
        return tokens * (scores + 4 * model.num_heads * model.head_width * a / t + keys)

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        # the factor inside the softmax needs plain attention, whose scores are read from and written to memory
        scores = (share.segment + self.extra_tokens(share.model)) * share.model.num_heads // share.tensor
        return speeds.passes("loss", share.tokens, scores, FP32, share.segment)
