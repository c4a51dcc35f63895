"""Hugging Face's `config.json` of a Llama to and from our configuration."""

from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig, RopeScaling
from model.errors import ModelError

_SIZES = {  # our field: Llama's, which must be there
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
}
_PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}  # what our layers are


def from_llama(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our `model:` section that a Llama's config.json decides; absent keys have Llama's defaults.

    Raises `ModelError` naming the key and the value of what our layers do not have.
    """
    problems = []
    if (kind := given.get("model_type")) != "llama":
        problems.append(f"model_type is {kind!r}, but only llama can be imported")
    problems += [f"{theirs} is missing" for theirs in _SIZES.values() if not isinstance(given.get(theirs), int)]
    problems += [
        f"{key} is {given[key]!r}, but this Llama has {value!r}"
        for key, value in _PLAIN.items()
        if given.get(key, value) != value
    ]
    if problems:
        raise ModelError(f"config.json: {'; '.join(problems)}")
    fields = {ours: given[theirs] for ours, theirs in _SIZES.items()}
    width = given.get("head_dim")
    theta, scaling = _rope(given)
    return fields | {
        "num_kv_heads": given.get("num_key_value_heads") or fields["num_heads"],
        "head_dim": None if width in (None, fields["hidden_size"] // fields["num_heads"]) else width,
        "rope_theta": theta,
        "rope_scaling": scaling.model_dump() if scaling else None,
        "norm_eps": given.get("rms_norm_eps", 1e-6),
        "tie_embeddings": given.get("tie_word_embeddings", False),
        "init_std": given.get("initializer_range"),
    }


def _rope(given: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from either spelling: `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    rope: Mapping[str, Any] = given.get("rope_parameters") or given.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", given.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"config.json: rope scaling is {kind!r}, but only llama3 is known; import an unscaled model")
    try:
        return theta, RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_position=rope["original_max_position_embeddings"],
        )
    except KeyError as error:
        raise ModelError(f"config.json: rope scaling llama3 lacks {error}") from None


def differences(given: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """What a Llama's config.json says otherwise than `config`.  Raises as `from_llama`."""
    wanted = ModelConfig(**from_llama(given), segment_length=config.segment_length)
    names = [name for name in from_llama(given) if name not in ("init_std", "head_dim")] + ["head_width"]
    return [
        f"model.{name} is {getattr(config, name)}, the folder's config.json gives {getattr(wanted, name)}"
        for name in names
        if getattr(config, name) != getattr(wanted, name)
    ]


def to_llama(config: ModelConfig, max_position: int, dtype: str) -> dict[str, Any]:
    """config.json of the backbone as a `LlamaForCausalLM`."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        **_PLAIN,
        "max_position_embeddings": max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initial_std(config.hidden_size),
        "torch_dtype": dtype,
    }
