"""The whole model as one module, for everything but a pipeline (`model.stages`)."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import DecoderLayer, new_embedding, new_norm
from model.errors import ModelError
from model.explicit.reading import Reading, read, with_references
from model.explicit.references import References
from model.hub import export as export_llama
from model.hub import load as load_llama
from model.initialization import initialize
from model.memory.sequential import run_sequential
from model.parallel_context import ParallelContext
from model.preparation import prepare
from model.segments import SegmentSpan, spans
from model.state import LastDocument, StreamState, map_tensors, number_documents


@dataclass(frozen=True)
class ModelOutput:
    """logits: fp32 [B, L, V]; state: pass it to the next call to continue the streams."""

    logits: Tensor
    state: StreamState


class LanguageModel(nn.Module):
    """Embedding, decoder layers with their memories, norm, head. Its parameter names are the canonical names."""

    def __init__(
        self,
        config: ModelConfig,
        parallel: ParallelContext | None = None,
        memory_on: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.parallel, self.memory_on = config, parallel or ParallelContext(), memory_on
        self.explicit = config.explicit if memory_on else None
        self.tp = self.parallel.tensor
        self.embedding = new_embedding(config, self.tp)
        self.layers = nn.ModuleList(DecoderLayer(config, self.parallel, i, memory_on) for i in range(config.num_layers))
        self.final_norm = new_norm(config, self.tp)
        self.head = self.embedding if config.tie_embeddings else new_embedding(config, self.tp)

    def initialize(self, seed: int, loaded_later: Container[str] = frozenset()) -> None:
        """Draw the initial weights, except those named in `loaded_later` (see `model.initialization.initialize`)."""
        for prefix, module in self.named_children():
            initialize(module, prefix, self.config, seed, self.tp, loaded_later)

    def hidden(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        state: StreamState | None = None,
        references: References | None = None,
        changes: int | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Return the normalised last hidden [B, L, D] of input_ids int64 [B, L], and the next state.

        Arguments, collectives and errors are those of `forward`. One more argument, changes, is at most how often a
        token of a row belongs to another document than the token before it. With None, a GPU in half precision counts
        it, which waits for the device once a call; a call that is captured into a CUDA graph uses a mask instead.
        """
        cut, documents, last_document = _stream(self, input_ids, document_ids, state)
        reading = self._reading(input_ids, document_ids, state, references)
        travelling = input_ids if reading is None else with_references(input_ids, reading)
        hidden, carried = self.embedding(travelling), state.carried if state else None
        # the dtype of what was embedded: to ask a weight outside its own module would make ZeRO 3 fetch it here
        cut = prepare(self.config, cut, input_ids, hidden.dtype, reading is not None, changes)
        given = state.layers if state else ()
        states = list(given) or [layer.initial_state(hidden) for layer in self.decoder_layers]
        if self.is_sequential:
            call = self.parallel.layer
            hidden, states, carried = run_sequential(self.decoder_layers, hidden, cut, states, carried, call)
        else:
            for index, layer in enumerate(self.decoder_layers):
                hidden, states[index] = self.parallel.layer(layer, hidden, cut, states[index], reading)
        last = cut[-1]
        following = StreamState(
            position=last.start + last.length,
            config=self.config,
            memory_on=self.memory_on,
            layers=tuple(_detach(layer_state) for layer_state in states),
            documents=None if documents is None else documents[:, documents.size(1) - last.kept :],
            bank_document=last.next_bank_document,
            last=last_document,
            carried=_detach(carried),
            references=None if reading is None else reading.open_chunk(last),
        )
        return self.final_norm(hidden[:, : input_ids.size(1)] if reading else hidden), following

    def _reading(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None,
        state: StreamState | None,
        references: References | None,
    ) -> Reading | None:
        """Return which references the call's chunks see; None in a model without explicit memory."""
        if self.explicit is None:
            if references is not None:
                why = "is off" if self.config.explicit else "has none: set model.explicit"
                raise ModelError(f"references: given, but the model's explicit memory {why}; pass references=None")
            return None
        if document_ids is None and state and state.last:
            document_ids = state.last.ids.unsqueeze(1).expand_as(input_ids)
        start, opened = (state.position, state.references) if state else (0, None)
        return read(self.config, self.tp, input_ids, start, references, document_ids, opened, fresh=state is None)

    @property
    def is_sequential(self) -> bool:
        """Whether the memory's segments are computed one after the other."""
        memory = self.config.memory
        return self.memory_on and memory.sequential and bool(memory.memory_layers(self.config.num_layers))

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The decoder layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def after(self, document_ids: Tensor, position: int) -> StreamState:
        """Return the state of streams at `position`, a segment's begin, whose banks another segment rank sends.

        Args: document_ids: int64 [B], documents of the tokens before `position`.
        """
        zero = torch.zeros_like(document_ids)
        return StreamState(
            position=position,
            config=self.config,
            memory_on=self.memory_on,
            layers=(),  # initial, made in `hidden`: touching a weight here would make ZeRO 3 gather it
            documents=document_ids.new_zeros(len(document_ids), 0),
            bank_document=zero,
            last=LastDocument(document_ids, zero),
        )

    def forward(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        state: StreamState | None = None,
        references: References | None = None,
    ) -> ModelOutput:
        """Return the logits of a batch of token streams, and the next state. Collective over the tensor group.

        Args:
            input_ids: int64 [B, L], any L >= 1; L need not be a multiple of the segment length.
            document_ids: int64 [B, L], a document ends where the id changes; None: the last document continues.
            state: the previous call's `out.state`, to continue the same B streams; None: streams begin.
            references: what the chunks that begin in this call read; only with explicit memory. None: nothing.

        Raises `ModelError` for shapes that do not fit each other or a state of another model or batch.
        """
        hidden, following = self.hidden(input_ids, document_ids, state, references)
        return ModelOutput(self.tp.gather(self.head.logits(hidden)).float(), following)

    def memory_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the names and parameters of the memories alone."""
        return [(name, p) for name, p in self.named_parameters() if is_memory_name(name)]

    def load_hf(self, state_dict: dict[str, Tensor]) -> None:
        """Load a Hugging Face `LlamaForCausalLM` state dict, weights [out, in], into the backbone; the memory stays.

        Raises `ModelError` when it does not fit, and changes nothing.
        """
        load_llama(self, state_dict)

    def to_hf(self) -> dict[str, Tensor]:
        """Return the backbone's weights [out, in] under Hugging Face `LlamaForCausalLM` names."""
        return export_llama(self)


def build_model(config: ModelConfig, seed: int = 0, memory_on: bool = True) -> LanguageModel:
    """Return an initialised fp32 model on the CPU, for one process without process group.

    Args: seed: of the initial weights; memory_on: False builds the same backbone without any memory parameter.
    """
    net = LanguageModel(config, memory_on=memory_on)
    net.initialize(seed)
    return net


def is_memory_name(name: str) -> bool:
    """Whether a canonical parameter name belongs to a memory."""
    return ".memory." in name


def _stream(
    net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None, state: StreamState | None
) -> tuple[list[SegmentSpan], Tensor | None, LastDocument | None]:
    """Check the arguments; return the spans, the documents [B, c+L] of cached and new tokens, and the last document.

    Raises `ModelError` when an argument does not fit the model or another argument.
    """
    if input_ids.dim() != 2 or input_ids.dtype != torch.int64 or input_ids.numel() == 0:
        raise ModelError(
            f"input_ids: {input_ids.dtype} {list(input_ids.shape)}, but it must be int64 [batch, length], not empty"
        )
    config, one_by_one = net.config, net.is_sequential
    # not on a GPU, where reading the ids would wait for the device
    if input_ids.device.type == "cpu" and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < config.vocab_size:
        raise ModelError(
            f"input_ids: from {int(input_ids.min())} to {int(input_ids.max())}, but model.vocab_size is "
            f"{config.vocab_size}; use the tokenizer the model was trained with"
        )
    if document_ids is not None and document_ids.shape != input_ids.shape:
        raise ModelError(
            f"document_ids: shape {list(document_ids.shape)} must equal input_ids' {list(input_ids.shape)}"
        )
    needed = net.memory_on and config.memory.needs_documents
    if needed and document_ids is None and (state is None or state.last is None):
        document_ids = torch.zeros_like(input_ids)
    batch, start, bank_document, documents = input_ids.size(0), 0, None, None
    last: LastDocument | None = None
    if state is not None:
        state.check(batch, config, net.memory_on)
        start, bank_document, documents, last = state.position, state.bank_document, state.documents, state.last
    if document_ids is not None or last is not None:
        if documents is None:
            # tokens before this call had no document ids: they are one document, with id and number 0
            documents = input_ids.new_zeros(batch, state.layers[0].keys.size(1) if state else 0)
            read = 0 if start >= config.segment_length else -1
            bank_document = input_ids.new_full((batch,), read)
        numbers, last = number_documents(document_ids, input_ids, last, fresh=start == 0)
        documents = torch.cat((documents, numbers), dim=1)
    span = config.attention_span
    chunk = net.explicit.chunk_length if net.explicit else None
    cut = spans(start, input_ids.size(1), config.segment_length, span, documents, bank_document, one_by_one, chunk)
    return list(cut), documents, last


def _detach(value: Any) -> Any:
    """Detach all tensors, so that a carried state does not keep the graph of the call before alive."""
    return map_tensors(Tensor.detach, value)
