"""Configuration and costs of `lm2` with `flow: depth`, LM2 as published: one bank passes through the blocks.

T tokens of a segment, D hidden.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from model.backbone import BackboneConfig, Positive
from model.memory.planning import FP32, RankShare, Speeds
from model.memory.spec import MemoryConfig

if TYPE_CHECKING:
    import torch

    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext


class LM2DepthConfig(MemoryConfig):
    """Fields of `memory.kind: lm2` with `flow: depth`; docs/memory.md describes the kind."""

    label = "lm2-depth"
    selects: ClassVar[dict[str, str]] = {"kind": "lm2", "flow": "depth"}
    caption = (
        "Softmax over the slots of earlier places of the segment, mean over heads; slot t holds what the "
        "tokens at place t of earlier segments left."
    )
    sequential = True
    carry_travels = True
    gathers = 1  # E_mem, from the heads of all ranks

    kind: Literal["lm2"]
    flow: Literal["depth"] = Field(description="depth: as published")
    top_k: Positive | None = Field(None, description="slots a token keeps of its softmax; default all")
    bptt_segments: Positive | None = Field(
        None, description="the carried memory is detached every so many segments; default never"
    )

    def num_slots(self, model: BackboneConfig) -> int:
        return model.segment_length

    def problems(self, model: BackboneConfig) -> list[str]:
        problems = super().problems(model)
        if self.slots not in (None, model.segment_length):
            problems.append(
                f"memory.slots {self.slots} must equal segment_length {model.segment_length} with flow 'depth': "
                "slot t is token t's; leave memory.slots out, or use flow: time"
            )
        return problems

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        from model.memory.lm2_depth.module import LM2DepthMemory

        return LM2DepthMemory(self, model, parallel)

    def first_carry(self, hidden: "torch.Tensor") -> "torch.Tensor":
        from model.memory.lm2_depth.module import initial_slots

        return initial_slots(hidden.size(1), hidden.size(2), hidden.device).expand_as(hidden)

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        size = model.hidden_size
        split = 3 * size * size  # W_Q, W_K, W_V
        whole = 3 * size * size + 3 * size  # three gates; norm, forget bias, scale
        return split, whole

    def weights(self, model: BackboneConfig) -> int:
        return 6 * model.hidden_size**2  # query, key, value and three gates

    def products(self, model: BackboneConfig) -> float:
        return model.segment_length * model.hidden_size  # scores and weighted sum, each over half of the segment

    def kept(self, share: RankShare) -> tuple[float, float]:
        size, a, t = share.model.hidden_size, share.item, share.tensor
        # norm, gates, tanh and slots are fp32; queries, keys, values and result have the tokens' dtype
        numbers = size * (5 * FP32 + a + 5 * a / t)
        return share.norm_kept + numbers + share.window * a + FP32 * self.heads / t, 0.0

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        size, tokens = share.model.hidden_size, share.tokens
        heads, width, own = max(1, self.heads // share.tensor), size // self.heads, size // share.tensor

        def linear(outer: int) -> float:
            joined = speeds.passes("residual", tokens, size, share.item) / 2
            return speeds.linear(tokens, size, outer, precision) + joined

        attention = speeds.attention(share.windows, heads, share.segment, share.segment, width, precision)
        gates = speeds.passes("slot gates", tokens, size, FP32, share.segment)
        return 3 * linear(own) + 3 * linear(size) + attention + gates
