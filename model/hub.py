"""Convert weights from and to Hugging Face's Llama: their names, and the fusing that tensor parallelism needs.

Weights are converted one by one, so that a model larger than half of the machine's memory can be read and written.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ModelError

if TYPE_CHECKING:
    from model.network import LanguageModel

_IGNORED = "rotary_emb.inv_freq"  # a constant that old checkpoints carry

_LAYER = {  # a weight of our decoder layer: the Llama weights that it fuses
    "attention_norm.weight": ("input_layernorm",),
    "attention.qkv.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out.weight": ("self_attn.o_proj",),
    "mlp_norm.weight": ("post_attention_layernorm",),
    "mlp.gate_up.weight": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down.weight": ("mlp.down_proj",),
}


def load(net: "LanguageModel", state_dict: Mapping[str, Tensor]) -> None:
    """Copy a Llama state dict into `net`'s backbone. Raises `ModelError` when it does not fit, and changes nothing."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, net.config)
    own = dict(net.named_parameters())
    with torch.no_grad():
        for name in llama_names(net.config):
            own[name].copy_(net.tp.shard(fuse(name, state_dict.__getitem__, net.config), own[name]))


def export(net: "LanguageModel") -> dict[str, Tensor]:
    """Return clones of the backbone's weights under Llama's names; a tied model gets no `lm_head.weight`."""
    assert net.tp.size == 1, "export from one rank: load the checkpoint into a model without tensor parallelism"
    own = dict(net.named_parameters())
    return {
        theirs: view.clone() for name in llama_names(net.config) for theirs, view in split(name, own[name], net.config)
    }


def llama_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Return, for each weight of our backbone by canonical name, the names of the Llama weights that it fuses."""
    names: dict[str, tuple[str, ...]] = {"embedding.weight": ("model.embed_tokens.weight",)}
    for i in range(config.num_layers):
        for own, theirs in _LAYER.items():
            names[f"layers.{i}.{own}"] = tuple(f"model.layers.{i}.{part}.weight" for part in theirs)
    names["final_norm.weight"] = ("model.norm.weight",)
    if not config.tie_embeddings:
        names["head.weight"] = ("lm_head.weight",)
    return names


def fuse(name: str, get: Callable[[str], Tensor], config: ModelConfig) -> Tensor:
    """Return our whole weight `name`, made of the Llama weights that `get` returns by name.

    Rows of query, key and value are ordered [Hkv, group + 2, d], rows of gate and up [ffn, 2].
    """
    parts = [get(theirs) for theirs in llama_names(config)[name]]
    if name.endswith(".qkv.weight"):
        return torch.cat([p.unflatten(0, (config.num_kv_heads, -1, config.head_width)) for p in parts], 1).flatten(0, 2)
    if name.endswith(".gate_up.weight"):
        return torch.stack(parts, dim=1).flatten(0, 1)
    return parts[0]


def split(name: str, weight: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Return our whole weight `name` as (name, weight) of Llama: the inverse of `fuse`, as views where possible."""
    weight, theirs = weight.detach(), llama_names(config)[name]
    parts: tuple[Tensor, ...] = (weight,)
    if name.endswith(".qkv.weight"):
        group = config.num_heads // config.num_kv_heads
        rows = weight.unflatten(0, (config.num_kv_heads, group + 2, config.head_width))
        parts = tuple(part.flatten(0, 2) for part in rows.split((group, 1, 1), dim=1))
    elif name.endswith(".gate_up.weight"):
        parts = weight.unflatten(0, (config.ffn_size, 2)).unbind(1)
    return zip(theirs, parts, strict=True)


def check_shapes(shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise `ModelError` naming the missing, unexpected or misshapen weights; shapes: by Llama's names."""
    given = {name: shape for name, shape in shapes.items() if not name.endswith(_IGNORED)}
    if config.tie_embeddings:
        given.pop("lm_head.weight", None)  # the same tensor as the embedding
    check_fit(given, llama_shapes(config), "Llama weights do")


def check_fit(given: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], what: str) -> None:
    """Raise `ModelError` naming the weights that are missing in `given`, unexpected or of another shape.

    what: the begin of the message, such as "Llama weights do".
    """
    problems = [f"missing {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"unexpected {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(given[name])}, the configuration gives {list(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ModelError(f"{what} not fit the model configuration: {shown}")


def llama_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Llama's weights, by Llama's names, for a configuration."""
    size, ffn, width = config.hidden_size, config.ffn_size, config.head_width
    q, kv = config.num_heads * width, config.num_kv_heads * width
    known = {
        "model.embed_tokens": (config.vocab_size, size),
        "lm_head": (config.vocab_size, size),
        "model.norm": (size,),
        "input_layernorm": (size,),
        "post_attention_layernorm": (size,),
        "self_attn.q_proj": (q, size),
        "self_attn.k_proj": (kv, size),
        "self_attn.v_proj": (kv, size),
        "self_attn.o_proj": (size, q),
        "mlp.gate_proj": (ffn, size),
        "mlp.up_proj": (ffn, size),
        "mlp.down_proj": (size, ffn),
    }
    shapes = {}
    for name in (theirs for parts in llama_names(config).values() for theirs in parts):
        kind = name.removesuffix(".weight")
        shapes[name] = known[kind.split(".", 3)[-1] if kind.startswith("model.layers.") else kind]
    return shapes
