"""What layers keep of references: of those of one call, and from one call to the next.

B batch, M references of the call, k kept tokens of each, P tokens of the BOS, m of the open chunk's references.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from model.parallel import TensorParallel


@dataclass(frozen=True)
class OpenChunk:
    """The references of a chunk that a call ended in: present, bool [B, m], and documents, int64 [B, m], if given."""

    present: Tensor
    documents: Tensor | None


@dataclass(frozen=True)
class LayerReferences:
    """One layer's share of what is carried: the BOS at its own place, and before the open chunk's segment the BOS and,
    in a memory layer, the open chunk's references.  Each [B, P or P+m, Hkv, d]; the last two are empty between chunks.
    """

    sink_keys: Tensor
    sink_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values [B, M, k, Hkv, d] of the call's references in one layer, at their own places."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def of_heads(stored: Tensor, heads: Sequence[int], num_kv_heads: int, tp: TensorParallel) -> "Memory":
        """From keys and values [B, M, 2, H_kv, k, d] of the key/value heads with memory, `heads`: those of this rank,
        zero for its heads without."""
        local = num_kv_heads // tp.size
        first = tp.rank * local
        places = [i for i, head in enumerate(heads) if first <= head < first + local]
        own = stored if len(places) == len(heads) else stored[:, :, :, places]
        if len(places) < local:
            filled = own.new_zeros(*own.shape[:3], local, *own.shape[4:])
            filled[:, :, :, [heads[i] - first for i in places]] = own
            own = filled
        return Memory(*own.transpose(3, 4).unbind(2))
