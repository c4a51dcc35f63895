"""Is a published number found again?  A model that is kept with the results answers its questions once more.

    python experiments/results_check.py --babi BABI --background BOOKS

The tokenizer is trained again from the same files, the questions are written again, and every share of right answers
must lie in the 95 % interval of the one in the log.  Two minutes on one core for the default lengths.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.errors import DataError
from evaluation.babilong.dense import TASKS
from evaluation.intervals import wilson
from experiments.babilong import SIZES, split_books, train_tokenizer
from experiments.babilong_parts.race import Entry, configuration, shares
from experiments.babilong_parts.samples import Cell, make_cells
from experiments.babilong_parts.training import load_weights
from model import LanguageModel, build_model

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", type=Path, required=True, metavar="FOLDER", help="bAbI's files of qa1 to qa5")
    parser.add_argument("--background", type=Path, required=True, metavar="FOLDER", help="the books of the results")
    parser.add_argument("--log", type=Path, default=RESULTS / "babilong-cpu.jsonl", help="what is checked")
    parser.add_argument("--lengths", nargs="+", default=["0k", "1k"], help="those of the log")
    options = parser.parse_args()
    try:
        books, held_out = split_books(options.background)
        entry, published = read_log(options.log, options.lengths)
    except DataError as error:
        parser.exit(2, f"{error}\n")
    net, outside = kept_model(entry, options.log), 0
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.model"
        train_tokenizer(tokenizer, options.babi, books)
        cells = [Cell(task, length, published[length]["samples"]) for length in options.lengths for task in TASKS]
        for cell, asked in make_cells(cells, options.babi, held_out, tokenizer, 1):
            found = shares(net, {cell.task: asked}, torch.device("cpu"))[cell.task]
            before = published[cell.length][cell.task]
            low, high = wilson(round(before * len(asked)), len(asked))
            outside += not low <= found <= high
            print(f"{cell.task} {cell.length}: {found:.3f}, published {before:.3f}, interval {low:.3f} to {high:.3f}")
    print("all inside their intervals" if not outside else f"{outside} outside")
    return min(1, outside)


def kept_model(entry: Entry, log: Path) -> LanguageModel:
    """The model of an entry, from the weights beside its log."""
    net = build_model(configuration(entry, SIZES["cpu"]), seed=entry.seed)
    load_weights(net, log.parent / f"{entry.name}.safetensors")
    return net


def read_log(path: Path, lengths: list[str]) -> tuple[Entry, dict[str, Any]]:
    """The last entry of a log, and its line for each of `lengths`.  Raises `DataError` when one is missing."""
    if not path.is_file():
        raise DataError(f"--log: {path} does not exist; name the log.jsonl of experiments/babilong.py")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    described = [line for line in lines if "kind" in line][-1]
    entry = Entry(**{key: described[key] for key in ("kind", "segment", "peak", "seed", "sparse", "span")})
    found = {line["length"]: line for line in lines if line.get("entry") == entry.name and "length" in line}
    if missing := [length for length in lengths if length not in found]:
        raise DataError(f"--lengths: {path} has no {', '.join(missing)} of {entry.name}; it has {', '.join(found)}")
    return entry, found


if __name__ == "__main__":
    raise SystemExit(main())
