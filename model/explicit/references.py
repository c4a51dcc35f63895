"""The references that the chunks of one call read."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from model.config import ModelConfig
from model.errors import ModelError


@dataclass(frozen=True)
class References:
    """References for the U chunks that begin in a call; chunk c is the stream's tokens [C*c, C*(c+1)).

    Every chunk brings `each` references, which `window` chunks see, the chunk itself and those after it: training has
    each 1 and window 5, generation each 5 and window 1. References are ordered by chunk, and the last ones belong to
    the last chunk. M = each*U, or more when the call's first chunks still see references of chunks before the call.

    lengths: int64 [B, M], tokens of each reference; 0: the chunk brings none.
    tokens: int64 [B, M, R], padded with any id. The call writes them, so that gradients reach the writing.
    memories: [B, M, L_mem, 2, H_kv, k, d], written before (`model.explicit.write`). Give either tokens or memories.
    documents: int64 [B, M], id of the document whose tokens retrieved the reference; tokens of other documents do not
        see it. None: all tokens do. The ids are those of the call; two documents within `window` chunks of each other
        must have different ids.
    """

    lengths: Tensor
    tokens: Tensor | None = None
    memories: Tensor | None = None
    documents: Tensor | None = None
    each: int = 1
    window: int = 1

    @property
    def count(self) -> int:
        """M, references of the call."""
        return self.lengths.size(1)

    @property
    def bundles(self) -> int:
        """Number of chunks that bring references."""
        return self.count // self.each

    def part(self, first: int, chunks: int, all_chunks: int) -> "References":
        """Return the references that chunks [first, first + chunks) of the call's `all_chunks` see.

        A call on these chunks alone takes them.
        """
        ahead = self.bundles - all_chunks  # bundles of earlier chunks
        begin, end = max(0, first + ahead - self.window + 1) * self.each, (first + ahead + chunks) * self.each
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        cut: dict[str, Any] = {name: value[:, begin:end] for name, value in tensors.items()}
        return replace(self, **cut)

    def check(self, batch: int, chunks: int, config: ModelConfig) -> None:
        """Raise `ModelError` when the references do not fit a call in which `chunks` chunks begin."""
        explicit = config.explicit
        assert explicit is not None
        if (self.tokens is None) == (self.memories is None):
            raise ModelError("references: give either their tokens, to be written, or their memories")
        shape = [batch, self.count]
        if self.tokens is not None:
            self._expect("tokens", self.tokens, [*shape, explicit.reference_length])
            if self.tokens.device.type == "cpu" and self.tokens.numel():
                low, high = int(self.tokens.min()), int(self.tokens.max())
                if not 0 <= low <= high < config.vocab_size:
                    raise ModelError(
                        f"references.tokens: ids from {low} to {high}, but model.vocab_size is {config.vocab_size}; "
                        "use the tokenizer the model was trained with"
                    )
        if self.memories is not None:
            self._expect("memories", self.memories, [*shape, *memory_shape(config)])
        self._expect("lengths", self.lengths, shape)
        if self.documents is not None:
            self._expect("documents", self.documents, shape)
        if self.each < 1 or self.window < 1 or self.count % self.each:
            raise ModelError(
                f"references: {self.count} references, each {self.each}, window {self.window}; each and window must be "
                "at least 1, and the number of references a multiple of each"
            )
        if not chunks <= self.bundles < chunks + self.window:
            raise ModelError(
                f"references: {self.bundles} bundles of {self.each} for the {chunks} chunks of "
                f"{explicit.chunk_length} tokens that begin in this call; give {chunks}, and up to {self.window - 1} "
                "more of the chunks before (fill up with lengths of 0), or None when no chunk begins"
            )

    @staticmethod
    def _expect(name: str, value: Tensor, shape: list[int]) -> None:
        if list(value.shape) != shape:
            raise ModelError(f"references.{name}: shape {list(value.shape)}, but it must be {shape}")


def memory_shape(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """Return (L_mem, 2, H_kv, k, d), the shape of one reference's explicit memory; axis 1 is keys, values."""
    explicit = config.explicit
    assert explicit is not None
    layers, heads = len(explicit.memory_layers(config.num_layers)), len(explicit.heads(config.num_kv_heads))
    return layers, 2, heads, explicit.tokens, config.head_width
