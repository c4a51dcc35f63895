"""How fast a bank opens and is read: a million small memories, and memories of the published shape.

python benchmarks/bank.py            1,000,000 memories of 1 KiB and 2,000 of 450,560 bytes: 2 GB on disk
python benchmarks/bank.py --small    a tenth of both, to try it

Read from the page cache, as after the first use; nothing is kept in the bank's own cache.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from data_prep.bank import Bank, BankWriter, MemoryShape, merge_bank

SMALL = MemoryShape(layers=2, heads=1, tokens=8, width=16)
PUBLISHED = MemoryShape(layers=22, heads=8, tokens=8, width=80)
LOOKUPS, EACH = 2000, 5
OPEN_SECONDS, LOOKUP_SECONDS = 2.0, 5e-3


def write(folder: Path, shape: MemoryShape, count: int) -> float:
    """Writes `count` memories; seconds."""
    started = time.perf_counter()
    random = np.random.default_rng(0)
    block = random.integers(0, 2**16, (1000, *shape.array), dtype=np.uint16)
    with BankWriter(folder, shape.array, "bfloat16", "model", "references") as writer:
        for first in range(0, count, len(block)):
            ids = np.arange(first, min(first + len(block), count))
            block[:, 0, 0, 0, 0, 0] = ids[0] % 2**16  # no two blocks are equal
            writer.write(ids, block[: len(ids)])
    merge_bank(folder)
    return time.perf_counter() - started


def open_seconds(folder: Path, rounds: int = 5) -> float:
    """Median seconds from nothing to an open bank."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        Bank(folder, "model")
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def lookup_seconds(folder: Path, count: int, rounds: int) -> np.ndarray:
    """Seconds [rounds] of reading 5 memories at random, each anew."""
    bank, random = Bank(folder, "model", cache_bytes=0), np.random.default_rng(1)
    asked = [random.integers(0, count, EACH) for _ in range(rounds)]
    bank.verify()  # into the page cache
    seconds = np.empty(rounds)
    for number, ids in enumerate(asked):
        started = time.perf_counter()
        bank.read(ids)
        seconds[number] = time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the memories")
    parser.add_argument("--folder", type=Path, default=None, help="where the banks are made (default: temporary)")
    options = parser.parse_args()
    share = 10 if options.small else 1
    claims = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name, shape, count in (("small", SMALL, 1_000_000 // share), ("published", PUBLISHED, 2_000 // share)):
            folder = Path(temporary) / name
            wrote = write(folder, shape, count)
            opened = open_seconds(folder)
            lookups = lookup_seconds(folder, count, LOOKUPS // share)
            middle, high = np.percentile(lookups, [50, 99]).tolist()
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(
                f"{name}: {count:,} memories of {shape.bytes():,} bytes, {size / 1e9:.2f} GB, written in {wrote:.1f} s"
            )
            print(f"  opened in {opened * 1e3:.1f} ms; {EACH} read in {middle * 1e3:.2f} ms (p99 {high * 1e3:.2f} ms)")
            claims.append((name, count, opened, high))
    for name, count, opened, high in claims:
        if name == "small":
            claim(f"bank of {count} small memories: ms to open", opened * 1e3, "< 2000", opened < OPEN_SECONDS)
        claim(f"bank, {name} memories: ms a lookup of 5, p99", high * 1e3, "< 5", high < LOOKUP_SECONDS)


if __name__ == "__main__":
    main()
