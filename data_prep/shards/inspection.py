"""Show a prepared folder to people: tables, a histogram, a sample with its document boundaries."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data_prep.files import replacing
from data_prep.shards.folder import PreparedFolder
from data_prep.shards.manifest import Split
from data_prep.stream.batch import Batch
from data_prep.stream.token_stream import TokenStream
from data_prep.tokenizers.tokenizer import Tokenizer

_STYLES = ("cyan", "yellow", "green", "magenta")
_LARGEST = 40  # 2**40 tokens: more than any document has


def document_lengths(folder: PreparedFolder, split: Split, samples: int = 50) -> dict[str, NDArray[np.int64]]:
    """Returns, by source, the tokens of documents, int64 [documents], of at most `samples` evenly spread shards.

    Checksums are not compared; `prepare_data.py --verify` does that.
    """
    lengths: dict[str, NDArray[np.int64]] = {}
    entries = [entry for entry in folder.manifest.shards if entry.split == split]
    for source in dict.fromkeys(entry.source for entry in entries):
        mine = [entry for entry in entries if entry.source == source]
        chosen = [mine[i] for i in np.unique(np.linspace(0, len(mine) - 1, min(samples, len(mine))).astype(int))]
        lengths[source] = np.concatenate([np.diff(folder.shard(entry, checksum=False).offsets) for entry in chosen])
    return lengths


def length_table(lengths: dict[str, NDArray[np.int64]]) -> Table:
    """Returns a table of the mean and percentiles of the documents' lengths."""
    table = Table("source", "documents read", "mean", "p5", "median", "p95", "longest", title="tokens a document")
    for source, values in lengths.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        numbers = [values.mean(), low, middle, high, values.max()]
        table.add_row(source, f"{len(values):,}", *(f"{number:,.0f}" for number in numbers))
    return table


def write_histogram(lengths: dict[str, NDArray[np.int64]], path: Path) -> None:
    """Writes a PNG: the share of documents (left) and of tokens (right) by length, in powers of 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    edges = 2.0 ** np.arange(_LARGEST)
    for axes, title in zip(figure.subplots(1, 2), ("documents", "tokens"), strict=True):
        for source, values in lengths.items():
            weights = np.ones(len(values)) if title == "documents" else values
            counts = np.histogram(values, edges, weights=weights)[0]
            used = max(np.flatnonzero(counts), default=0) + 2
            axes.stairs(counts[: used - 1] / weights.sum(), edges[:used], label=source)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens a document")
        axes.set_ylabel(f"share of the {title}")
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def mix_table(stream: TokenStream, phases: Sequence[tuple[str, int, int]]) -> Table:
    """Returns a table of each source's share by size and in each phase, and of its epochs in the run.

    phases: (name, first sample, sample after the last) of each phase.
    """
    table = Table("source", "by size", *(name for name, _, _ in phases), "epochs", title="share of the samples")
    end = stream.epochs(phases[-1][2])
    for source, windows in stream.windows.items():
        shares = [f"{windows / len(stream):.1%}"]
        for _, first, last in phases:
            passed = (stream.epochs(last)[source] - stream.epochs(first)[source]) * windows
            shares.append(f"{passed / (last - first):.1%}")
        table.add_row(source, *shares, f"{end[source]:.2f}")
    return table


def sample_panel(stream: TokenStream, tokenizer: Tokenizer, index: int) -> Panel:
    """Returns sample `index` as text: alternating colours for documents, a line before each, dim where not learned."""
    origin, batch = stream.describe(index), stream.batch([index])
    text, before = Text(), 0
    for (document, learned), tokens in _runs(batch):
        if document != before:
            text.append(f"\n──── document {document} ────\n", style="bold red")
        before = document
        style = _STYLES[document % len(_STYLES)]
        text.append(_decode(tokens, tokenizer), style=style if learned else f"dim {style}")
    title = f"sample {index:,}: {origin.source}, epoch {origin.epoch}, {origin.shard} window {origin.window:,}"
    learned_labels, labels = int(batch.loss_mask.sum()), batch.loss_mask.size
    return Panel(text, title=escape(title), subtitle=f"{learned_labels:,} of {labels:,} labels are learned")


def _runs(batch: Batch) -> list[tuple[tuple[int, bool], list[int]]]:
    """Returns ((document, whether it is learned), tokens) for each run of such tokens in a batch of one sample."""
    # A token is learned as the label of the token before it; the first is no label.
    learned = np.concatenate([[batch.loss_mask[0, 0]], batch.loss_mask[0]])
    kinds = zip(batch.document_ids[0].tolist(), learned.tolist(), batch.tokens[0].tolist(), strict=True)
    return [
        (key, [token for _, _, token in group]) for key, group in itertools.groupby(kinds, key=lambda kind: kind[:2])
    ]


def _decode(tokens: list[int], tokenizer: Tokenizer) -> str:
    """Returns the text of tokens, with bos and eos as the vocabulary spells them."""
    out, specials = "", (tokenizer.bos_id, tokenizer.eos_id)
    for special, group in itertools.groupby(tokens, key=lambda token: token in specials):
        members = list(group)
        out += "".join(map(tokenizer.piece, members)) if special else tokenizer.decode(members)
    return out
