"""Llama, one token, one head and one key after another.

Everything is an fp64 vector of one token.  A memory is a function from the tokens of one stream to what each recalls.
T tokens of a segment, D hidden size, d head width.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, ModelConfig

Weights = dict[str, Tensor]
# (config, weights, prefix of the memory's names, a vector per token, a document per token) -> a vector per token
Recall = Callable[[ModelConfig, Weights, str, list[Tensor], list[int]], list[Tensor]]


def forward(
    net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None = None, recall: Recall | None = None
) -> Tensor:
    """Logits fp64 [B, L, V] of `net`'s weights, stream by stream."""
    return each_stream(net, input_ids, document_ids, partial(one_stream, recall=recall))


def each_stream(
    net: LanguageModel,
    input_ids: Tensor,
    document_ids: Tensor | None,
    one: Callable[[ModelConfig, Weights, list[int], list[int]], Tensor],
) -> Tensor:
    """`one`'s logits [L, V] of every row, with the weights in fp64."""
    weights = {name: parameter.double() for name, parameter in net.named_parameters()}
    streams = []
    for row, ids in enumerate(input_ids.tolist()):
        documents = [0] * len(ids) if document_ids is None else document_ids[row].tolist()
        streams.append(one(net.config, weights, ids, documents))
    return torch.stack(streams)


def one_stream(
    config: ModelConfig, weights: Weights, ids: list[int], documents: list[int], recall: Recall | None
) -> Tensor:
    """Logits [L, V] of one stream."""
    hidden = [weights["embedding.weight"][token] for token in ids]
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        normed = [norm(config, weights[prefix + "attention_norm.weight"], x) for x in hidden]
        attended = attention(config, weights, prefix + "attention.", normed, documents)
        hidden = [x + y for x, y in zip(hidden, attended, strict=True)]
        normed = [norm(config, weights[prefix + "mlp_norm.weight"], x) for x in hidden]
        hidden = [x + swiglu(weights, prefix + "mlp.", h) for x, h in zip(hidden, normed, strict=True)]
        if any(name.startswith(prefix + "memory.") for name in weights):
            assert recall is not None
            recalled = recall(config, weights, prefix + "memory.", normed, documents)
            hidden = [x + y for x, y in zip(hidden, recalled, strict=True)]
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]
    return torch.stack([head @ norm(config, weights["final_norm.weight"], x) for x in hidden])


def norm(config: ModelConfig, weight: Tensor, x: Tensor) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean() + config.norm_eps)


def swiglu(weights: Weights, prefix: str, h: Tensor) -> Tensor:
    both = weights[prefix + "gate_up.weight"]  # rows gate 0, up 0, gate 1, up 1, ...
    return weights[prefix + "down.weight"] @ (F.silu(both[0::2] @ h) * (both[1::2] @ h))


def attention(
    config: ModelConfig, weights: Weights, prefix: str, tokens: list[Tensor], documents: list[int]
) -> list[Tensor]:
    width, group = config.head_width, config.num_heads // config.num_kv_heads
    # rows: for each key/value head its `group` query heads, its key, its value
    rows = weights[prefix + "qkv.weight"].split(width)
    outputs = []
    for t in range(len(tokens)):
        visible = [u for u in range(t + 1) if sees(config, documents, t, u)]
        context = []
        for head in range(config.num_heads):
            kv_head, number = divmod(head, group)
            first = kv_head * (group + 2)
            query = rotate(config, rows[first + number] @ tokens[t], t)
            keys = [rotate(config, rows[first + group] @ tokens[u], u) for u in visible]
            values = [rows[first + group + 1] @ tokens[u] for u in visible]
            shares = torch.stack([query @ key / math.sqrt(width) for key in keys]).softmax(dim=0)
            context.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        outputs.append(weights[prefix + "out.weight"] @ torch.cat(context))
    return outputs


def sees(config: ModelConfig, documents: list[int], t: int, u: int) -> bool:
    """Whether the token at t attends to the one at u <= t: same document, and in the last `attention_span` segments."""
    segments_back = t // config.segment_length - u // config.segment_length
    return documents[t] == documents[u] and segments_back < config.attention_span


def rotate(config: ModelConfig, x: Tensor, position: int) -> Tensor:
    """Component i and component i + d/2 are one pair."""
    half = config.head_width // 2
    out = [torch.empty(0)] * (2 * half)
    for i in range(half):
        angle = position * frequency(config, i)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def frequency(config: ModelConfig, pair: int) -> float:
    """Radians per position."""
    plain = config.rope_theta ** (-2 * pair / config.head_width)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_max_position * plain / (2 * math.pi)  # in the original context
    if turns > scaling.high_freq_factor:
        return plain
    if turns < scaling.low_freq_factor:
        return plain / scaling.factor
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return share * plain + (1 - share) * plain / scaling.factor
