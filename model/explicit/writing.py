"""Write references as explicit memories, which a bank stores and `References.memories` takes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.errors import ModelError
from model.explicit.memory import Memory
from model.explicit.reading import read, with_references
from model.explicit.references import References

if TYPE_CHECKING:
    from model.network import LanguageModel


def write(net: "LanguageModel", tokens: Tensor, lengths: Tensor) -> Tensor:
    """Encode each reference alone and return the keys and values of the tokens that each layer and head keeps.

    Collective over the tensor group. Only blocks up to the last memory layer are computed. Call it under
    `torch.no_grad()` unless you want gradients.

    Args: tokens int64 [N, R], padded with any id; lengths int64 [N].
    Returns [N, L_mem, 2, H_kv, k, d], the heads of all ranks: keys, rotated to their positions in the reference, then
        values; zero beyond `lengths`.
    Raises `ModelError` when the model has no explicit memory or the shapes do not fit.
    """
    if net.explicit is None:
        raise ModelError("write: the model has no explicit memory, or has it off; set model.explicit")
    references = References(lengths.unsqueeze(0), tokens.unsqueeze(0), window=len(tokens) + 1)
    nothing = tokens.new_empty(1, 0)
    reading = read(net.config, net.tp, nothing, 0, references, None, None, fresh=True)
    hidden, kept = net.embedding(with_references(nothing, reading)), []
    for layer in net.decoder_layers[: reading.last_memory_layer + 1]:
        hidden, memory = layer.write(hidden, reading)
        if memory is not None:
            kept.append(_all_heads(net, memory))
    return torch.stack(kept, dim=1)


def _all_heads(net: "LanguageModel", memory: Memory) -> Tensor:
    """Gather keys and values [1, N, k, Hkv/tp, d] of a layer -> [N, 2, H_kv, k, d], all ranks' heads with memory."""
    assert net.explicit is not None
    own = torch.cat((memory.keys, memory.values)).transpose(0, 1)  # [N, 2, k, Hkv/tp, d]
    every = net.tp.gather(own.flatten(3)).unflatten(3, (-1, own.size(4)))
    return every[:, :, :, list(net.explicit.heads(net.config.num_kv_heads))].transpose(2, 3)
