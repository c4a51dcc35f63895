"""The language model as a Transformers `AutoModelForCausalLM`; its cache carries the memory."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.config import ModelConfig
from model.explicit.references import References
from model.explicit.writing import write
from model.generation import read
from model.hf.cache import MemtrainCache, Streams
from model.hf.configuration import MemtrainConfig
from model.network import LanguageModel


class MemtrainForCausalLM(PreTrainedModel, GenerationMixin):
    """Weights are named as `LanguageModel` names them, below `net`."""

    config_class = MemtrainConfig
    base_model_prefix = "net"
    main_input_name = "input_ids"
    _tied_weights_keys = {"net.head.weight": "net.embedding.weight"}  # noqa: RUF012  # how Transformers spells it

    def __init__(self, config: MemtrainConfig) -> None:
        super().__init__(config)
        # `config.shape` would not do: Transformers loads the file of `config` from another copy, with other kinds
        self.net = LanguageModel(ModelConfig(**config.model))
        if not any(parameter.is_meta for parameter in self.net.parameters()):  # not loaded from a folder
            self.net.initialize(seed=0)
            for parameter in self.net.parameters():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta and not getattr(parameter, "_is_hf_initialized", False):
                raise ValueError(f"the folder lacks a weight: {name} of a {type(module).__name__}; export it again")

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.net.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.net.head

    def resize_token_embeddings(self, *_arguments: Any, **_keywords: Any) -> torch.nn.Module:
        raise ValueError("resize_token_embeddings: the vocabulary of a memtrain model is fixed when it is trained")

    def write_references(self, tokens: Tensor, lengths: Tensor) -> References:
        """Write references int64 [n, R] of lengths int64 [n] as explicit memories, for `self.net(ids, references=...)`.

        They serve one stream (B = 1): each chunk of `ids` brings one reference, which all later tokens see too; a
        length of 0 means no reference.
        Raises `ModelError` when the model has no explicit memory.
        """
        memories = write(self.net, tokens, lengths)
        return References(lengths.unsqueeze(0), memories=memories.unsqueeze(0), window=len(tokens))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: MemtrainCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Return the logits of a batch, and the cache to continue from.

        Args:
            input_ids: int64 [B, L], the tokens after those that `past_key_values` has read.
            attention_mask: [B, past + L] or [B, L]; 0 = padding, which must be on the left. Padding on the right is
                accepted when no cache is asked for, because no token sees later ones.
            past_key_values: of an earlier call; the call changes it in place, as for Transformers' caches.
            labels: int64 [B, L]; positions with -100 are left out of the loss.
            logits_to_keep: number of last positions to compute; 0: all.

        Returns `CausalLMOutputWithPast`: logits fp32 [B, L or kept, V], 0 at padding on the left.
        Raises `ValueError` for padding or outputs that a memory does not allow.
        """
        if output_attentions or output_hidden_states:
            raise ValueError(
                "output_attentions and output_hidden_states: this model does not return them; leave them out"
            )
        cache = past_key_values
        if cache is None:
            mask, pads_on_right = _left_padding(attention_mask)
            if pads_on_right and use_cache:
                raise ValueError(
                    "attention_mask: with a cache padding must be on the left; set tokenizer.padding_side='left'"
                )
            use_cache = not pads_on_right if use_cache is None else use_cache
            cache = MemtrainCache.begin(input_ids.size(0), mask, input_ids.device)
        else:
            _check_continuation(cache, input_ids, attention_mask)
        logits = self._advance(cache, input_ids, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        past = None if use_cache is False else cache
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)
        return output.to_tuple() if return_dict is False else output

    def _advance(self, cache: MemtrainCache, input_ids: Tensor, keep: int) -> Tensor:
        """Read `input_ids` [B, L] into `cache`; return logits fp32 [B, L or keep, V]."""
        length = input_ids.size(1)
        kept = min(keep, length) if keep else length
        following, parts = [], []
        for streams in cache.streams:
            skipped = max(0, streams.padding - cache.length)
            own = input_ids.index_select(0, streams.rows)[:, skipped:]
            hidden, state = read(self.net, own, streams.state, kept)
            logits = self.net.head.logits(hidden).float()  # [n, kept or fewer, V]
            parts.append(torch.nn.functional.pad(logits, (0, 0, kept - logits.size(1), 0)))
            following.append(Streams(streams.rows, streams.padding, state))
        cache.streams, cache.length = following, cache.length + length
        order = torch.cat([streams.rows for streams in following]).argsort()
        return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, order)


def _left_padding(mask: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return the mask if it pads on the left, and whether it pads on the right. Raises `ValueError` for others."""
    if mask is None or bool(mask.bool().all()):
        return None, False
    if mask.dim() != 2 or not bool(mask.bool().any(dim=1).all()):
        raise ValueError(
            f"attention_mask: shape {list(mask.shape)}; it must be [batch, length], with a token in each row"
        )
    steps = mask.bool().int().diff(dim=1)
    if not bool((steps < 0).any()):
        return mask, False
    if bool((steps > 0).any()):
        raise ValueError("attention_mask: a row's padding must all come before its tokens, or all after them")
    return None, True


def _check_continuation(cache: MemtrainCache, input_ids: Tensor, mask: Tensor | None) -> None:
    """Raise `ValueError` for another batch size than the cache's, and for padding after tokens that were read."""
    if cache.batch_size != input_ids.size(0):
        raise ValueError(
            f"past_key_values: has {cache.batch_size} rows, but input_ids have {input_ids.size(0)}; pass the same rows"
        )
    if mask is not None and not bool(mask[:, -input_ids.size(1) :].bool().all()):
        raise ValueError("attention_mask: rows that are being continued cannot be padded; leave them out of the batch")
