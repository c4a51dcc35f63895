"""What layers keep of references: during a call (`Memory`) and from one call to the next (the other two).

B batch, M references of the call, k kept tokens of each, P tokens of the BOS, m of the open chunk's references.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from model.parallel import TensorParallel


@dataclass(frozen=True)
class OpenChunk:
    """The references of the chunk in which a call ended, token by token.

    present: bool [B, m], False where a reference has no such token. documents: int64 [B, m], ids of the documents
    whose tokens retrieved them; None: every token sees them.
    """

    present: Tensor
    documents: Tensor | None


@dataclass(frozen=True)
class LayerReferences:
    """What one layer carries of BOS and references to the next call.

    sink_keys, sink_values: [B, P, Hkv, d], the BOS at its own positions.
    keys, values: [B, P or P+m, Hkv, d], the BOS and, in a memory layer, the open chunk's references, rotated to stand
        before the open segment; of no token when no chunk is open.
    """

    sink_keys: Tensor
    sink_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values [B, M, k, Hkv, d] of a call's references in one layer, at their positions in the reference."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def of_heads(stored: Tensor, heads: Sequence[int], num_kv_heads: int, tp: TensorParallel) -> "Memory":
        """Return this rank's heads of `stored` [B, M, 2, H_kv, k, d], whose heads are the key/value heads `heads`.

        This rank's heads without memory are zero.
        """
        local = num_kv_heads // tp.size
        first = tp.rank * local
        places = [i for i, head in enumerate(heads) if first <= head < first + local]
        own = stored if len(places) == len(heads) else stored[:, :, :, places]
        if len(places) < local:
            filled = own.new_zeros(*own.shape[:3], local, *own.shape[4:])
            filled[:, :, :, [heads[i] - first for i in places]] = own
            own = filled
        return Memory(*own.transpose(3, 4).unbind(2))
