"""The whole model as one module: what `build_model` returns and what one pipeline stage would be with all layers."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import hub
from model.config import ModelConfig
from model.decoder import DecoderLayer, hosts_memory, new_embedding, new_norm
from model.errors import ModelError
from model.initialization import initialize
from model.parallel import TensorParallel
from model.segments import Piece, pieces
from model.state import LayerState, StreamState


@dataclass(frozen=True)
class ModelOutput:
    """logits: fp32 [B, L, V]; state: pass it to the next call to go on where this one ended."""

    logits: Tensor
    state: StreamState


class LanguageModel(nn.Module):
    """Embedding, decoder layers with their memories, norm, head.  Parameter names here are the canonical ones."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel | None = None,
        memory_on: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.tp = config, tp or TensorParallel()
        self.activation_checkpointing = activation_checkpointing
        self.embedding = new_embedding(config, self.tp)
        self.layers = nn.ModuleList(
            DecoderLayer(config, self.tp, hosts_memory(config, i, memory_on)) for i in range(config.num_layers)
        )
        self.final_norm = new_norm(config)
        self.head = self.embedding if config.tie_embeddings else new_embedding(config, self.tp)

    def initialize(self, seed: int) -> None:
        """Draw the initial weights (see `model.initialization`)."""
        for prefix, module in self.named_children():
            initialize(module, prefix, self.config, seed, self.tp)

    def hidden(
        self, input_ids: Tensor, document_ids: Tensor | None = None, state: StreamState | None = None
    ) -> tuple[Tensor, StreamState]:
        """int64 [B, L] -> normalised last hidden [B, L, D] and the next state."""
        cut, documents = _stream(self.config, input_ids, document_ids, state)
        hidden, layer_states = self.embedding(input_ids), []
        for index, layer in enumerate(self.layers):
            past = state.layers[index] if state else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden, layer_state = checkpoint(layer, hidden, cut, past, use_reentrant=False)
            else:
                hidden, layer_state = layer(hidden, cut, past)
            layer_states.append(_detached(layer_state))
        last = cut[-1]
        following = StreamState(
            position=last.start + last.length,
            segment_length=self.config.segment_length,
            layers=tuple(layer_states),
            documents=None if documents is None else documents[:, documents.size(1) - last.kept :],
            bank_document=last.next_bank_document,
        )
        return self.final_norm(hidden), following

    def forward(
        self, input_ids: Tensor, document_ids: Tensor | None = None, state: StreamState | None = None
    ) -> ModelOutput:
        """Logits of a batch of token streams.

        Args:
            input_ids: int64 [B, L], any L >= 1; L need not be a multiple of the segment length.
            document_ids: int64 [B, L] >= 0, equal inside a document, different in adjacent ones; None: one document.
            state: the previous call's `out.state`, to go on with the same B streams.

        Raises `ModelError` for shapes that do not fit each other or a state of another model or batch.
        """
        hidden, following = self.hidden(input_ids, document_ids, state)
        return ModelOutput(self.tp.gather_last_dim(self.head.logits(hidden)).float(), following)

    def memory_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the memories alone."""
        return [(name, p) for name, p in self.named_parameters() if is_memory_name(name)]

    def load_hf(self, state_dict: dict[str, Tensor]) -> None:
        """Load a Hugging Face `LlamaForCausalLM` state dict into the backbone; the memory is left as it is."""
        hub.load(self, state_dict)

    def to_hf(self) -> dict[str, Tensor]:
        """The backbone under Hugging Face `LlamaForCausalLM` names."""
        return hub.export(self)


def build_model(config: ModelConfig, seed: int = 0, memory_on: bool = True) -> LanguageModel:
    """A freshly initialised fp32 model on the CPU; needs one process and nothing initialised.

    Args: seed of the initial weights; memory_on=False builds the same backbone without any memory parameter.
    """
    net = LanguageModel(config, memory_on=memory_on)
    net.initialize(seed)
    return net


def is_memory_name(name: str) -> bool:
    """Whether a canonical parameter name belongs to a memory."""
    return ".memory." in name


def _stream(
    config: ModelConfig, input_ids: Tensor, document_ids: Tensor | None, state: StreamState | None
) -> tuple[list[Piece], Tensor | None]:
    """Check the arguments; return the pieces and the documents [B, c+L] of cached and new tokens."""
    if input_ids.dim() != 2 or input_ids.dtype != torch.int64 or input_ids.numel() == 0:
        raise ModelError(
            f"input_ids: {input_ids.dtype} {list(input_ids.shape)}, but it must be int64 [batch, length], not empty"
        )
    if document_ids is not None and document_ids.shape != input_ids.shape:
        raise ModelError(
            f"document_ids: shape {list(document_ids.shape)} must equal input_ids' {list(input_ids.shape)}"
        )
    batch, start, bank_document, documents = input_ids.size(0), 0, None, document_ids
    if state is not None:
        state.check(batch, config.num_layers, config.segment_length)
        start, bank_document = state.position, state.bank_document
        if state.documents is not None or document_ids is not None:
            past = state.documents
            if past is None:  # the past had no document ids: it was one document, number 0
                past = input_ids.new_zeros(batch, state.layers[0].keys.size(1))
                bank_document = input_ids.new_zeros(batch) if start >= config.segment_length else None
            documents = torch.cat((past, torch.zeros_like(input_ids) if document_ids is None else document_ids), 1)
    if documents is not None and bank_document is None:
        bank_document = input_ids.new_full((batch,), -1)
    cut = pieces(start, input_ids.size(1), config.segment_length, config.attention_span, documents, bank_document)
    return list(cut), documents


def _detached(state: LayerState) -> LayerState:
    """The carried state holds no graph: what one call computed does not stay alive through the next."""
    return LayerState(*(_detach(x) for x in (state.keys, state.values, state.memory)))


def _detach(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value is None:
        return None
    return replace(value, **{name: _detach(x) for name, x in vars(value).items()})
