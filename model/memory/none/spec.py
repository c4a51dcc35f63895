"""Configuration of `none`: a Llama without memory."""

from typing import TYPE_CHECKING, ClassVar, Literal

from model.backbone import BackboneConfig
from model.memory.planning import RankShare, Speeds
from model.memory.spec import MemoryConfig

if TYPE_CHECKING:
    from model.memory.interface import Memory
    from model.parallel_context import ParallelContext


class NoMemoryConfig(MemoryConfig):
    """`memory.kind: none`. No layer hosts a memory, and all costs are zero."""

    label = "none"
    selects: ClassVar[dict[str, str]] = {"kind": "none"}
    exists = False

    kind: Literal["none"] = "none"

    def memory_layers(self, num_layers: int) -> frozenset[int]:
        return frozenset()

    def problems(self, model: BackboneConfig) -> list[str]:
        return []

    def build(self, model: BackboneConfig, parallel: "ParallelContext", first: bool) -> "Memory":
        raise AssertionError("no layer hosts a memory of kind none")

    def parameters(self, model: BackboneConfig, first: bool) -> tuple[int, int]:
        return 0, 0

    def weights(self, model: BackboneConfig) -> int:
        return 0

    def products(self, model: BackboneConfig) -> float:
        return 0.0

    def kept(self, share: RankShare) -> tuple[float, float]:
        return 0.0, 0.0

    def seconds(self, share: RankShare, speeds: Speeds, precision: str) -> float:
        return 0.0
