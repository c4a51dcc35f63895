"""Nats a token of texts with and without explicit memory, retrieval shifted so that no token's loss knows of itself."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from evaluation.memories import MemorySource
from evaluation.results import Row
from model.explicit.generation import RetrievingReader
from model.network import LanguageModel


@torch.no_grad()
def losses(net: LanguageModel, texts: Sequence[Sequence[int]], source: MemorySource | None) -> tuple[float, int]:
    """(nats, tokens) of texts of equal length, each but its first token; source None: nothing is read.

    A chunk reads what the 64 tokens before it find; the first chunk reads nothing.
    """
    reader = RetrievingReader(net, source, texts, shifted=True)
    tokens = torch.tensor([list(text) for text in texts], device=reader.device)
    segment, nats = net.config.segment_length, 0.0
    while reader.position < tokens.size(1) - 1:
        begin = reader.position
        hidden = reader.read(min(segment, tokens.size(1) - 1 - begin))
        labels = tokens[:, begin + 1 : reader.position + 1]
        nats += float(F.cross_entropy(reader.logits(hidden).flatten(0, 1), labels.flatten(), reduction="sum"))
    return nats, tokens[:, 1:].numel()


def perplexity_rows(
    net: LanguageModel, texts: Sequence[Sequence[int]], source: MemorySource, batch_size: int = 8
) -> list[Row]:
    """Rows "perplexity/without memory" and "perplexity/explicit memory", nats a token over the same texts."""
    rows = []
    for name, chosen in (("without memory", None), ("explicit memory", source)):
        totals = [losses(net, texts[at : at + batch_size], chosen) for at in range(0, len(texts), batch_size)]
        value = sum(nats for nats, _ in totals) / sum(count for _, count in totals)
        rows.append(Row(task=f"perplexity/{name}", samples=len(texts), scorer="nats per token", value=value))
    return rows
