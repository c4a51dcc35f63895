"""Convert our configuration from and to the `config.json` of a Hugging Face Llama."""

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from model.config import ModelConfig, RopeScaling
from model.errors import ModelError

_SIZES = {  # our field: Llama's, which is required
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
}
_PLAIN: dict[str, tuple[Any, ...]] = {  # the values that our layers implement, in Transformers' spellings
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


def from_llama(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of our `model:` section that a Llama's config.json determines; absent keys have its defaults.

    Raises `ModelError` naming key and value of a feature that our layers lack, or of a value of the wrong type.
    """
    problems = []
    if (kind := given.get("model_type")) != "llama":
        problems.append(f"model_type is {kind!r}, but only llama can be imported")
    problems += [text for theirs in _SIZES.values() if (text := _not_a_size(given, theirs))]
    problems += [
        f"{key} is {given[key]!r}, but this Llama has {allowed[0]!r}"
        for key, allowed in _PLAIN.items()
        if key in given and given[key] not in allowed
    ]
    if given.get("quantization_config") is not None:
        problems.append("quantization_config says that the weights are quantised; give the folder of the plain ones")
    for key in ("num_key_value_heads", "head_dim"):
        if given.get(key) is not None and (text := _not_a_size(given, key)):
            problems.append(text)
    for key in ("rms_norm_eps", "initializer_range"):
        if key in given and not _is_positive(given[key]):
            problems.append(f"{key} is {given[key]!r}; it must be a number above 0, without quotes")
    if not isinstance(given.get("tie_word_embeddings", False), bool):
        problems.append(f"tie_word_embeddings is {given['tie_word_embeddings']!r}; it must be true or false")
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


def _not_a_size(given: Mapping[str, Any], key: str) -> str:
    """Return what is wrong with a number of rows, layers or heads, or an empty string."""
    if key not in given:
        return f"{key} is missing"
    if type(given[key]) is not int or given[key] < 1:
        return f"{key} is {given[key]!r}; it must be a whole number of at least 1, without quotes"
    return ""


def _is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _rope(given: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return base and scaling, from either spelling: `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    for key in ("rope_parameters", "rope_scaling"):
        if given.get(key) is not None and not isinstance(given[key], Mapping):
            raise ModelError(f"config.json: {key} is {given[key]!r}; it must be an object or null")
    where = "rope_parameters" if given.get("rope_parameters") else "rope_scaling"
    rope: Mapping[str, Any] = given.get(where) or {}
    theta = _number_of(rope, where, "rope_theta") if "rope_theta" in rope else None
    if theta is None:
        theta = _number_of(given, "", "rope_theta") if "rope_theta" in given else 10000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"config.json: rope scaling is {kind!r}, but only llama3 is known; import an unscaled model")
    numbers = {
        key: _number_of(rope, where, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    }
    if numbers["factor"] == 1:  # a factor of 1 changes no frequency
        return theta, None
    try:
        return theta, RopeScaling(
            factor=numbers["factor"],
            low_freq_factor=numbers["low_freq_factor"],
            high_freq_factor=numbers["high_freq_factor"],
            original_max_position=rope["original_max_position_embeddings"],
        )
    except ValueError as error:
        raise ModelError(f"config.json: {where} {dict(rope)} cannot be used: {_first(error)}") from None


def _number_of(given: Mapping[str, Any], where: str, key: str) -> float:
    """Return the number under `key`. Raises `ModelError` naming the key when it is missing or not above 0."""
    name = f"{where}.{key}" if where else key
    if key not in given:
        raise ModelError(f"config.json: rope scaling llama3 lacks {name}")
    if not _is_positive(given[key]):
        raise ModelError(f"config.json: {name} is {given[key]!r}; it must be a number above 0, without quotes")
    return float(given[key])


def _first(error: ValueError) -> str:
    """Return pydantic's first message about a configuration, with its field."""
    found = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
    return ".".join(map(str, (*found["loc"], found["msg"])))


def differences(given: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return the fields in which `config` differs from a Llama's config.json, as sentences. Raises as `from_llama`."""
    try:
        wanted = ModelConfig(**from_llama(given), segment_length=config.segment_length)
    except ValidationError as error:
        raise ModelError(f"config.json: no such Llama can be built: {_first(error)}") from None
    names = [name for name in from_llama(given) if name not in ("init_std", "head_dim")] + ["head_width"]
    return [
        f"model.{name} is {getattr(config, name)}, the folder's config.json gives {getattr(wanted, name)}"
        for name in names
        if getattr(config, name) != getattr(wanted, name)
    ]


def to_llama(config: ModelConfig, max_position: int, dtype: str) -> dict[str, Any]:
    """Return the backbone's config.json as a `LlamaForCausalLM`; max_position: in tokens; dtype: of the weights."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
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
