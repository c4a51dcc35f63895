"""Loss in nats per token with and without explicit memory.

Queries are shifted to the chunk before, so that a token's loss never depends on a query that contains the token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from evaluation.memories import MemorySource
from evaluation.results import Row
from model.explicit.generation import RetrievingReader
from model.network import LanguageModel


@torch.no_grad()
def losses(net: LanguageModel, texts: Sequence[Sequence[int]], source: MemorySource | None) -> tuple[float, int]:
    """Return the sum of nats and the number of tokens, of texts of equal length without their first tokens.

    A chunk reads the references that the chunk before it retrieves; the first chunk reads none. source None: no chunk
    reads any.
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
    """Return rows "perplexity/without memory" and "perplexity/explicit memory", in nats per token on equal texts."""
    rows = []
    for name, chosen in (("without memory", None), ("explicit memory", source)):
        totals = [losses(net, texts[at : at + batch_size], chosen) for at in range(0, len(texts), batch_size)]
        value = sum(nats for nats, _ in totals) / sum(count for _, count in totals)
        rows.append(Row(task=f"perplexity/{name}", samples=len(texts), scorer="nats per token", value=value))
    return rows
