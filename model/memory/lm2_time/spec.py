"""Configuration and costs of `lm2` with `flow: time`: a bank of gated slots in each block. N slots, D hidden."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from model.backbone import BackboneConfig
from model.memory.planning import FP32, RankShare, Speeds, scan_seconds
from model.memory.spec import MemoryConfig

if TYPE_CHECKING:
    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext


class LM2TimeConfig(MemoryConfig):
    """Fields of `memory.kind: lm2` with `flow: time`, the default; docs/memory.md describes the kind."""

    label = "lm2-time"
    selects: ClassVar[dict[str, str]] = {"kind": "lm2"}  # time is the default flow
    caption = (
        "A token's query gives every slot a weight (a positive unit vector, no softmax); shown is that "
        "weight times the norm of what the slot holds, as a share of all slots, mean over heads."
    )

    kind: Literal["lm2"]
    flow: Literal["time", "depth"] | None = Field(
        None, description="lm2: time (default) = a bank per block, all segments at once; depth = as published"
    )

    @property
    def title(self) -> str:
        return "lm2 flow: time"

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        from model.memory.lm2_time.module import LM2TimeMemory

        return LM2TimeMemory(self, model, parallel)

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        return self.weights(model) + 2 * model.hidden_size + self.heads, 0  # weights, and the biases of three gates

    def weights(self, model: BackboneConfig) -> int:
        # query and key; content, two gates and out; the forget gate
        return model.hidden_size * (2 * self.heads * self.num_slots(model) + 4 * model.hidden_size + self.heads)

    def products(self, model: BackboneConfig) -> float:
        return 2 * self.num_slots(model) * model.hidden_size  # write and read

    def kept(self, share: RankShare) -> tuple[float, float]:
        size, num_slots = share.model.hidden_size, self.num_slots(share.model)
        banks, addresses = share.states_kept(num_slots * size), self.heads * num_slots
        if share.compiled:  # three arrays of slots and three of tokens in fp32, and the results of products
            fp32, made = 3 * size + 3 * addresses, 4 * size + 2 * addresses + self.heads
            return (FP32 * fp32 + share.item * made) / share.tensor, banks
        # keys: features, unit, own document's, decays, decayed; queries and a copy
        numbers = 6 * size + 7 * addresses + 5 * self.heads + 2 * addresses / share.segment
        return (FP32 * numbers + share.item * size) / share.tensor, banks

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        size, tokens, num_slots = share.model.hidden_size, share.tokens, self.num_slots(share.model)
        heads, width, own = max(1, self.heads // share.tensor), size // self.heads, size // share.tensor

        def linear(outer: int) -> float:
            joined = speeds.passes("residual", tokens, size, share.item) / 2
            return speeds.linear(tokens, size, outer, precision) + joined

        def passes(what: str, numbers: int) -> float:
            return speeds.passes(what, tokens, numbers, FP32, share.segment)

        products = 2 * speeds.batched(share.windows * heads, share.segment, num_slots, width)  # write and read
        streams = (
            passes("decaying keys", heads * num_slots) + passes("queries", heads * num_slots) + passes("gates", own)
        )
        out = speeds.linear(tokens, own, size, precision)
        states = scan_seconds(share, speeds, heads * width * num_slots)
        return 2 * linear(heads * num_slots) + 3 * linear(own) + linear(heads) + out + products + streams + states

    def state_numbers(self, model: BackboneConfig) -> int:
        return self.num_slots(model) * model.hidden_size
