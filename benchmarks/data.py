"""The data stream: its speed against raw numpy and its peers, a batch's wait, a manifest of 1 T tokens, the shuffle.

python benchmarks/data.py [--only stream …] [--peers PYTHON]

The peers (mosaicml-streaming, Hugging Face datasets) are run with the interpreter PYTHON that has them; a peer that
is not installed is reported as null.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.claims import claim, interleaved_seconds
from benchmarks.data_scale import huge_manifest, save_manifest, tokenizing
from data_prep import TokenStream
from data_prep.shards.writer import ShardWriter

ROOT = Path(__file__).resolve().parent.parent
BATCH, LENGTH, BATCHES = 16, 2048, 3000
TOKENS = 100_000_000
SEED = 0


def write_folder(folder: Path, tokens: int = TOKENS) -> Path:
    """A prepared folder of documents of log-normal length, 16 Mi tokens a shard, random tokens."""
    folder.mkdir()
    rng = np.random.default_rng(SEED)
    written = 0
    with ShardWriter(folder, "train", "web", "uint16", 32 << 20) as writer:
        while written < tokens:
            document = rng.integers(3, 32_000, int(rng.lognormal(6.5, 1)) + 2, dtype=np.uint16)
            document[0], document[-1] = 1, 2
            writer.add(document)
            written += len(document)
    save_manifest(folder, writer.entries)
    return folder


def stream_speed(console: Console, work: Path, peers: str) -> None:
    """Shuffled batches of 16 x 2,049 tokens, everything in the page cache, one process."""
    stream = TokenStream(write_folder(work / "speed"), sequence_length=LENGTH, seed=SEED)
    flat = [shard.tokens for shard in stream._shards]
    rng = np.random.default_rng(SEED)
    shards = rng.integers(0, len(flat), BATCHES * BATCH).tolist()
    starts = [int(rng.integers(0, len(flat[shard]) - LENGTH)) for shard in shards]

    def raw() -> None:
        for first in range(0, BATCHES * BATCH, BATCH):
            out = np.empty((BATCH, LENGTH + 1), dtype=np.uint16)
            for row in range(BATCH):
                start = starts[first + row]
                out[row] = flat[shards[first + row]][start : start + LENGTH + 1]

    epoch = 0

    def ours() -> None:
        nonlocal epoch  # other samples every time: the locating is measured too
        for first in range(epoch, epoch + BATCHES * BATCH, BATCH):
            stream.batch(range(first, first + BATCH))
        epoch += BATCHES * BATCH

    tokens = BATCHES * BATCH * (LENGTH + 1)
    ours_rate, raw_rate = (tokens / seconds for seconds in interleaved_seconds([ours, raw]))
    windows = work / "windows.npy"
    np.save(windows, stream.batch(range(len(stream))).tokens)
    found = {name: peer_rates(name, windows, work, peers) for name in ("streaming", "datasets")}
    table = Table("reader", "setting", "M tokens/s", title=f"shuffled batches of {BATCH} x {LENGTH + 1}, page cache")
    table.add_row("TokenStream", "", f"{ours_rate / 1e6:,.0f}")
    table.add_row("numpy memory-map slices", "", f"{raw_rate / 1e6:,.0f}")
    for name, rates in found.items():
        for setting, rate in rates.items():
            table.add_row(name, setting, f"{rate / 1e6:,.1f}")
    console.print(table)
    claim("stream, M tokens/s", ours_rate / 1e6, ">= 500", ours_rate >= 500e6)
    claim("stream / raw numpy slices", ours_rate / raw_rate, ">= 0.5", ours_rate >= 0.5 * raw_rate)
    for name, rates, factor in (
        ("mosaicml-streaming", found["streaming"], 5),
        ("HF datasets", found["datasets"], 2),
    ):
        ratio = ours_rate / max(rates.values()) if rates else None
        claim(f"stream / {name}", ratio, f">= {factor}", None if ratio is None else ratio >= factor)


def peer_rates(name: str, windows: Path, work: Path, python: str) -> dict[str, float]:
    """{setting: tokens per second}; empty where the peer is not installed."""
    command = [python, str(ROOT / "benchmarks" / "data_peers.py"), name, str(windows), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        return {}
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1])["rates"])


def batch_wait(console: Console, work: Path) -> None:
    """p99 of reading a batch of the quickstart, nothing read ahead, against its training step on one rank."""
    from training.batches import read

    overrides = [f"run.output_dir={work}/runs", f"data.path={work}/quickstart", "tracking.enabled=false"]
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml"), *overrides]
    for script in (["prepare_data.py", *config], ["pretrain.py", *config, "training.stop_after_steps=12"]):
        done = subprocess.run([sys.executable, *launcher(script)], capture_output=True, text=True, check=False)
        if done.returncode not in (0, 75):
            raise RuntimeError(done.stderr[-2000:])
    lines = (work / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
    speeds = [line["tokens_per_second"] for line in map(json.loads, lines) if "tokens_per_second" in line]
    step = 8192 / float(np.median(speeds))
    stream = TokenStream(work / "quickstart", sequence_length=512, seed=SEED)
    waits = []
    for first in range(0, 16 * 2000, 16):
        started = time.perf_counter()
        read(stream, range(first, first + 16), 4)
        waits.append(time.perf_counter() - started)
    wait = float(np.percentile(waits[100:], 99))
    console.print(
        f"quickstart: a step takes {step * 1e3:.0f} ms, a batch {np.median(waits) * 1e3:.2f} ms, "
        f"p99 {wait * 1e3:.2f} ms"
    )
    claim("p99 batch wait / step of the quickstart", wait / step, "< 0.01", wait < 0.01 * step)


def launcher(words: list[str]) -> list[str]:
    return [str(ROOT / "launchers" / words[0]), *words[1:]]


def shuffle_quality(console: Console, work: Path) -> None:
    """Is every window as likely at every place, and do neighbours come from one shard no more often than chance?"""
    from scipy.stats import binom, chisquare

    from data_prep.stream.permutation import permute

    n, keys, bins = 3000, 2000, 50
    places = np.zeros((bins, bins))
    for key in range(keys):
        image = permute(np.arange(n), n, key)
        np.add.at(places, (np.arange(n) * bins // n, image * bins // n), 1)
    p_value = float(chisquare(places.ravel()).pvalue)
    folder = work / "shuffle"
    stream = TokenStream(write_folder(folder, TOKENS // 2), sequence_length=LENGTH, seed=SEED)
    shards = np.array([stream.describe(g).shard for g in range(10_000)])
    sizes = np.unique(shards, return_counts=True)[1] / len(shards)
    chance, same = float(np.sum(sizes**2)), int(np.sum(shards[1:] == shards[:-1]))
    tail = float(binom.sf(same - 1, len(shards) - 1, chance))
    console.print(
        f"shuffle: chi-square p = {p_value:.3f}; same shard next: {same / len(shards):.4f}, by chance {chance:.4f}"
    )
    claim("permutation: p-value of chi-square over 50 x 50 places", p_value, "> 0.001", p_value > 0.001)
    claim("neighbours of one shard: p-value of no more than chance", tail, "> 0.001", tail > 0.001)


SECTIONS: dict[str, Callable[[Console, Path], None]] = {
    "wait": batch_wait,
    "manifest": huge_manifest,
    "shuffle": shuffle_quality,
    "tokenize": tokenizing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["stream", *SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the parts")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    options = parser.parse_args()
    console = Console()
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            if name == "stream":
                stream_speed(console, Path(folder), options.peers)
            else:
                SECTIONS[name](console, Path(folder))


if __name__ == "__main__":
    main()
