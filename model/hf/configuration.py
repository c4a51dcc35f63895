"""The `config.json` of an exported model, which has a `ModelConfig` under the key `model`."""

from typing import Any

from transformers import PretrainedConfig

from model.config import ModelConfig


class MemtrainConfig(PretrainedConfig):
    """A `ModelConfig` as a Transformers configuration, with the attributes that Transformers reads."""

    model_type = "memtrain"

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.model = dict(model or {})
        if model:
            kwargs["tie_word_embeddings"] = self.shape.tie_embeddings
        super().__init__(**kwargs)

    @property
    def shape(self) -> ModelConfig:
        """The checked `ModelConfig`. Raises `pydantic.ValidationError` when it is invalid."""
        return ModelConfig(**self.model)

    @property
    def vocab_size(self) -> int:
        return int(self.model["vocab_size"])

    @property
    def hidden_size(self) -> int:
        return int(self.model["hidden_size"])

    @property
    def num_hidden_layers(self) -> int:
        return int(self.model["num_layers"])

    @property
    def num_attention_heads(self) -> int:
        return int(self.model["num_heads"])

    @property
    def num_key_value_heads(self) -> int:
        return int(self.model["num_kv_heads"])
