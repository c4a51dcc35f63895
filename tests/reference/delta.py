"""The gated delta rule, one token after another.

Per head, with positive unit keys and queries (as in `lm2_time`), for every token of a segment's last document in turn:

    M <- alpha (I - beta k k^T) M + beta k v^T,  beta = sigmoid(W_in h), alpha = exp(-softplus(W_forget h)), v = W_c h

and out = W_o (sigmoid(W_out h) * rms(q^T M)) with the M that earlier segments left; documents as in `lm2_time`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, ModelConfig
from tests.reference import llama
from tests.reference.llama import Weights
from tests.reference.lm2_time import positive_unit


def forward(net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Logits fp64 [B, L, V] of `net`'s weights."""
    return llama.forward(net, input_ids, document_ids, recall)


def recall(
    config: ModelConfig, weights: Weights, prefix: str, tokens: list[Tensor], documents: list[int]
) -> list[Tensor]:
    memory = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    width, heads = config.hidden_size // config.memory.heads, config.memory.heads
    empty = [torch.zeros(width, width).double() for _ in range(heads)]
    bank, owner, recalled = empty, None, []
    for begin in range(0, len(tokens), config.segment_length):
        segment = list(zip(tokens, documents, strict=True))[begin : begin + config.segment_length]
        recalled += [read(config, memory, h, bank if document == owner else empty) for h, document in segment]
        if len(segment) == config.segment_length:
            last = segment[-1][1]
            bank, owner = (bank if last == owner else empty), last
            for h, document in segment:
                if document == last:
                    bank = [written(config, memory, h, matrix, head) for head, matrix in enumerate(bank)]
    return recalled


def read(config: ModelConfig, memory: Weights, h: Tensor, bank: list[Tensor]) -> Tensor:
    parts = []
    for head, matrix in enumerate(bank):
        found = positive_unit(config, of_head(memory["query.weight"] @ h, head, matrix)) @ matrix
        parts.append(found / torch.sqrt((found * found).mean() + 0.1))
    gate = torch.sigmoid(memory["gate_out.weight"] @ h + memory["gate_out_bias"])
    return memory["out.weight"] @ (gate * torch.cat(parts))


def written(config: ModelConfig, memory: Weights, h: Tensor, matrix: Tensor, head: int) -> Tensor:
    k = positive_unit(config, of_head(memory["key.weight"] @ h, head, matrix))
    v = of_head(memory["content.weight"] @ h, head, matrix)
    beta = torch.sigmoid(memory["gate_in.weight"][head] @ h + memory["gate_in_bias"][head])
    alpha = torch.exp(-F.softplus(memory["gate_forget.weight"][head] @ h + memory["gate_forget_bias"][head]))
    return alpha * (matrix - beta * torch.outer(k, k @ matrix)) + beta * torch.outer(k, v)


def of_head(x: Tensor, head: int, matrix: Tensor) -> Tensor:
    width = len(matrix)
    return x[head * width : (head + 1) * width]
