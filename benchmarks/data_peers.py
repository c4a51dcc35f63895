"""The stream's peers on the same tokens, each at its best setting: `python data_peers.py NAME WINDOWS.npy FOLDER`.

Prints one JSON line {"rates": {setting: tokens per second}}; leaves with code 3 where the peer is not installed.
Run by benchmarks/data.py, perhaps with another interpreter: the peers' pins differ from this project's.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH, ROUNDS = 16, 5
Batches = Callable[[], Iterable[NDArray[np.uint16]]]


def rate(batches: Batches, tokens: int) -> float:
    """Median tokens per second over ROUNDS epochs, after one that is not counted."""
    seconds = []
    for _ in range(ROUNDS + 1):
        started, read = time.perf_counter(), 0
        for batch in batches():
            read += batch.size
        seconds.append(time.perf_counter() - started)
        assert read >= 0.99 * tokens, f"an epoch gave {read} of {tokens} tokens"
    return tokens / statistics.median(seconds[1:])


def mosaic(windows: NDArray[np.uint16], folder: Path) -> dict[str, float]:
    from streaming import MDSWriter, StreamingDataset

    out = str(folder / "mds")
    with MDSWriter(out=out, columns={"tokens": f"ndarray:uint16:{windows.shape[1]}"}, size_limit=1 << 26) as writer:
        for window in windows:
            writer.write({"tokens": window})

    def epoch(algorithm: str) -> Batches:
        dataset = StreamingDataset(
            local=out, shuffle=True, shuffle_algo=algorithm, predownload=2 * len(windows), batch_size=BATCH
        )

        def batches() -> Iterable[NDArray[np.uint16]]:
            held = []
            for sample in dataset:
                held.append(sample["tokens"])
                if len(held) == BATCH:
                    yield np.stack(held)
                    held = []

        return batches

    return {name: rate(epoch(name), windows.size) for name in ("py1s", "py1e", "naive")}


def hf(windows: NDArray[np.uint16], folder: Path) -> dict[str, float]:
    import datasets

    width = windows.shape[1]
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=width)})
    datasets.Dataset.from_dict({"tokens": windows}, features=features).save_to_disk(str(folder / "hf"))
    shuffled = datasets.load_from_disk(str(folder / "hf")).shuffle(seed=0)

    def as_numpy() -> Iterable[NDArray[np.uint16]]:
        for batch in shuffled.with_format("numpy").iter(BATCH):
            yield np.asarray(batch["tokens"])

    def as_arrow() -> Iterable[NDArray[np.uint16]]:
        for table in shuffled.with_format("arrow").iter(BATCH):
            yield table["tokens"].combine_chunks().flatten().to_numpy().reshape(-1, width)

    return {"numpy": rate(as_numpy, windows.size), "arrow": rate(as_arrow, windows.size)}


PEERS = {"streaming": mosaic, "datasets": hf}

if __name__ == "__main__":
    name, file, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if importlib.util.find_spec(name) is None:
        sys.exit(3)
    print(json.dumps({"rates": PEERS[name](np.load(file), work)}))
