"""Weights to and from Hugging Face's Llama: names, and the fused layouts that tensor parallelism needs."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ModelError

if TYPE_CHECKING:
    from model.network import LanguageModel

_IGNORED = "rotary_emb.inv_freq"  # a constant that old checkpoints carry


def load(net: "LanguageModel", state_dict: dict[str, Tensor]) -> None:
    """Copy a Llama state dict into `net`'s backbone.  Raises as `fuse`, before anything is changed."""
    own = dict(net.named_parameters())
    with torch.no_grad():
        for name, tensor in fuse(state_dict, net.config).items():
            own[name].copy_(net.tp.shard(tensor, own[name]))


def export(net: "LanguageModel") -> dict[str, Tensor]:
    """Clones of the backbone's weights under Llama's names; tied models carry no `lm_head.weight`."""
    assert net.tp.size == 1, "export from one rank: load the checkpoint into a model without tensor parallelism"
    return {name: tensor.clone() for name, tensor in _split(net).items()}


def fuse(state_dict: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A Llama state dict as whole weights under our names and in our layouts.

    Raises `ModelError` naming every missing, unexpected or misshapen weight.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, config)
    return _fuse(state_dict, config)


def check_shapes(found: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise `ModelError` naming every missing, unexpected or misshapen weight among Llama's names and shapes."""
    given = {name: shape for name, shape in found.items() if not name.endswith(_IGNORED)}
    if config.tie_embeddings:
        given.pop("lm_head.weight", None)  # the same tensor as the embedding
    expected = _shapes(config)
    problems = [f"missing {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"unexpected {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(given[name])}, the configuration gives {list(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ModelError(f"Llama weights do not fit the model configuration: {shown}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Llama's names and shapes for a configuration."""
    size, ffn = config.hidden_size, config.ffn_size
    q, kv = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, size)}
    shapes["model.norm.weight"] = (size,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, size)
    for i in range(config.num_layers):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in (
                ("self_attn.q_proj", (q, size)),
                ("self_attn.k_proj", (kv, size)),
                ("self_attn.v_proj", (kv, size)),
                ("self_attn.o_proj", (size, q)),
                ("mlp.gate_proj", (ffn, size)),
                ("mlp.up_proj", (ffn, size)),
                ("mlp.down_proj", (size, ffn)),
                ("input_layernorm", (size,)),
                ("post_attention_layernorm", (size,)),
            )
        }
    return shapes


def _split(net: "LanguageModel") -> dict[str, Tensor]:
    """Views of the weights, under Llama's names."""
    config, own = net.config, {name: p.detach() for name, p in net.named_parameters()}
    out = {"model.embed_tokens.weight": own["embedding.weight"], "model.norm.weight": own["final_norm.weight"]}
    if not config.tie_embeddings:
        out["lm_head.weight"] = own["head.weight"]
    group = config.num_heads // config.num_kv_heads
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        qkv = own[ours + "attention.qkv.weight"].unflatten(0, (config.num_kv_heads, group + 2, config.head_width))
        q, k, v = qkv.split((group, 1, 1), dim=1)  # [Hkv, group | 1 | 1, d, D]
        gate_up = own[ours + "mlp.gate_up.weight"].unflatten(0, (config.ffn_size, 2))
        out |= {
            theirs + "self_attn.q_proj.weight": q.flatten(0, 2),
            theirs + "self_attn.k_proj.weight": k.flatten(0, 2),
            theirs + "self_attn.v_proj.weight": v.flatten(0, 2),
            theirs + "self_attn.o_proj.weight": own[ours + "attention.out.weight"],
            theirs + "mlp.gate_proj.weight": gate_up[:, 0],
            theirs + "mlp.up_proj.weight": gate_up[:, 1],
            theirs + "mlp.down_proj.weight": own[ours + "mlp.down.weight"],
            theirs + "input_layernorm.weight": own[ours + "attention_norm.weight"],
            theirs + "post_attention_layernorm.weight": own[ours + "mlp_norm.weight"],
        }
    return out


def _fuse(given: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Llama's weights under our names and in our layouts ([Hkv, group+2, d] rows; [ffn, 2] rows)."""
    out = {"embedding.weight": given["model.embed_tokens.weight"], "final_norm.weight": given["model.norm.weight"]}
    if not config.tie_embeddings:
        out["head.weight"] = given["lm_head.weight"]
    heads, width = config.num_kv_heads, config.head_width
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        q, k, v = (
            given[theirs + f"self_attn.{x}_proj.weight"].unflatten(0, (heads, -1, width)) for x in ("q", "k", "v")
        )
        gate, up = (given[theirs + f"mlp.{x}_proj.weight"] for x in ("gate", "up"))
        out |= {
            ours + "attention.qkv.weight": torch.cat((q, k, v), dim=1).flatten(0, 2),
            ours + "attention.out.weight": given[theirs + "self_attn.o_proj.weight"],
            ours + "mlp.gate_up.weight": torch.stack((gate, up), dim=1).flatten(0, 1),
            ours + "mlp.down.weight": given[theirs + "mlp.down_proj.weight"],
            ours + "attention_norm.weight": given[theirs + "input_layernorm.weight"],
            ours + "mlp_norm.weight": given[theirs + "post_attention_layernorm.weight"],
        }
    return out
