"""Configuration and costs of `delta`, the delta rule with decay. d width of a head, C tokens of a chunk, D hidden."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from model.backbone import BackboneConfig
from model.memory.planning import FP32, RankShare, Speeds, scan_seconds
from model.memory.spec import MemoryConfig

if TYPE_CHECKING:
    import torch

    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext

BLOCK = 4  # tokens; `model.memory.delta.chunks` inverts triangular systems of this size by their series
COMPOSE_PASSES = 9  # reads and writes of the maps of chunks where pairs of them are composed, forward and backward
SYSTEM_PASSES = 30  # reads and writes of the chunks' triangular systems, forward and backward together


class DeltaConfig(MemoryConfig):
    """Fields of `memory.kind: delta`; docs/memory.md describes the kind."""

    label = "delta"
    selects: ClassVar[dict[str, str]] = {"kind": "delta"}
    caption = (
        "The memory is a matrix; a “slot” is one of its rows, a key direction. Shown is the query's coordinate "
        "times the norm of the row, as a share of all rows, mean over heads."
    )

    kind: Literal["delta"]
    sparse_writes: bool = Field(
        False,
        description="the input gate reaches exactly 0, and a token forgets in proportion to what it writes, so "
        "text that is not worth writing leaves the memory as it is, however long it is",
    )

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        from model.memory.delta.module import DeltaMemory

        return DeltaMemory(self, model, parallel)

    def computed_by(
        self, model: BackboneConfig, device: "torch.device", precision: str, segment_ranks: int
    ) -> str | None:
        from model.memory.delta.kernels import WIDEST, obstacle

        why, width = obstacle(device), model.hidden_size // self.heads
        if why is None and segment_ranks > 1:
            why = "parallel.segment passes banks between ranks"
        if why is None and precision == "fp32":
            why = "it has no fp32"
        if why is None and width > WIDEST:
            why = f"heads are {width} wide, it takes {WIDEST} at most: raise model.memory.heads"
        if why is None:
            return "segments by flash-linear-attention's kernel"
        return f"chunks by plain products, not by flash-linear-attention's kernel, because {why}"

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        return self.weights(model) + model.hidden_size + 2 * self.heads, 0  # weights, and the biases of three gates

    def weights(self, model: BackboneConfig) -> int:
        return model.hidden_size * (5 * model.hidden_size + 2 * self.heads)

    def products(self, model: BackboneConfig) -> float:
        width, chunk = model.hidden_size // self.heads, min(model.segment_length, 64)
        # 3d: the read, and a chunk's recall and write; 1.5C: the chunk's triangular system and its solution
        return model.hidden_size * (3 * width + 1.5 * chunk)

    def kept(self, share: RankShare) -> tuple[float, float]:
        size, heads = share.model.hidden_size, self.heads
        width = size // heads
        chunk = chunk_length(share.segment, width)
        # keys: features, unit, solved, scaled twice; written; queries: features, unit; the read, its gate and a copy
        numbers = 11 * size + 3 * heads * chunk + 12 * heads
        states = share.states_kept(size * width) + FP32 * size * width / chunk / share.tensor
        return (FP32 * numbers + share.item * size) / share.tensor, states

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        size, tokens, segment = share.model.hidden_size, share.tokens, share.segment
        heads, width, own = max(1, self.heads // share.tensor), size // self.heads, size // share.tensor

        def linear(outer: int) -> float:
            joined = speeds.passes("residual", tokens, size, share.item) / 2
            return speeds.linear(tokens, size, outer, precision) + joined

        chunk = chunk_length(segment, width)
        chunks = share.windows * heads * -(-segment // chunk)
        products = speeds.batched(chunks, width, width, chunk) * 3 + speeds.batched(chunks, chunk, width, chunk) * 2
        if share.fused_norms:  # a GPU composes pairs of chunks; a CPU carries the bank through them in order
            products += 2 * speeds.batched(chunks, width, width, width)
            maps = 2.0 * chunks * width * width * FP32
            products += speeds.stream(COMPOSE_PASSES * maps, maps)
        system = tokens * heads * chunk * FP32
        streams = speeds.stream(SYSTEM_PASSES * system, system)
        for what in ("gates twice", "queries"):
            streams += speeds.passes(what, tokens, own, FP32, segment)
        out, states = speeds.linear(tokens, own, size, precision), scan_seconds(share, speeds, heads * width * width)
        return 4 * linear(own) + 2 * linear(heads) + out + products + streams + states

    def state_numbers(self, model: BackboneConfig) -> int:
        return model.hidden_size // self.heads * model.hidden_size


def chunk_length(tokens: int, width: int) -> int:
    """Return C, a block times a power of two, for segments of `tokens` tokens and heads of `width`.

    Longer chunks mean fewer products that must follow each other, and more work inside a chunk.
    """
    length = BLOCK
    while length < tokens and length < min(max(width // 2, 32), 256):
        length *= 2
    return length
