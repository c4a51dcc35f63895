"""Progress bars with the time left, and the summary table, of a preparation."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from data_prep.shards.manifest import Manifest


class CountProgress:
    """A bar over `total` things, as a context manager that yields the function to advance it by n."""

    _STEP = 1 << 20  # smallest advance that is drawn, but at most total/1024, so that small documents do not slow down

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            *self._columns(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(title, total=total)
        self._step = min(self._STEP, total // 1024)
        self._waiting = 0

    def _columns(self) -> list[ProgressColumn]:
        return [MofNCompleteColumn()]

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return self._advance

    def _advance(self, count: int) -> None:
        self._waiting += count
        if self._waiting > self._step:
            self._progress.advance(self._task, self._waiting)
            self._waiting = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.advance(self._task, self._waiting)
        self._progress.stop()


class ByteProgress(CountProgress):
    """A bar over bytes, with their rate."""

    def _columns(self) -> list[ProgressColumn]:
        return [DownloadColumn(), TransferSpeedColumn()]


def print_summary(console: Console, manifest: Manifest, folder: Path | str) -> None:
    """Prints documents and tokens of each source and split, the documents left out, and the tokenizer."""
    table = Table("split", "source", "documents", "tokens", "shards", title=str(folder))
    for split, source in dict.fromkeys((shard.split, shard.source) for shard in manifest.shards):
        shards = [shard for shard in manifest.shards if (shard.split, shard.source) == (split, source)]
        documents = sum(shard.documents for shard in shards)
        tokens = sum(shard.tokens for shard in shards)
        table.add_row(split, source, f"{documents:,}", f"{tokens:,}", f"{len(shards):,}")
    console.print(table)
    for source, skipped in manifest.skipped.items():
        parts = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in skipped.model_dump().items() if count]
        if parts:
            console.print(f"{source}: left out {', '.join(parts)}")
    tokenizer = manifest.tokenizer
    console.print(
        f"tokenizer {tokenizer.file}: {tokenizer.vocab_size:,} pieces, bos is {tokenizer.bos_id}, eos is "
        f"{tokenizer.eos_id}, tokens are {manifest.token_type}"
    )
