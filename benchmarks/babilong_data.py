"""How long a BABILong sample takes to make, from 4,000 to 10 million tokens.

python benchmarks/babilong_data.py [--background BOOKS …] [--babi FOLDER] [--tokenizer FILE …]

Without books the text is of documentation strings, without bAbI the facts are the simulator's, without a tokenizer
one of 2,048 pieces is trained on the text.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from data_prep import Tokenizer, load_tokenizer
from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.generator import Generator
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.sources import Generated

LENGTHS = ("4k", "128k", "1M", "10M")
GOAL = 60  # seconds for 1M


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--background", nargs="+", default=[], metavar="PATH")
    parser.add_argument("--babi", metavar="FOLDER")
    parser.add_argument("--tokenizer", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args()
    background = open_background(options.background)
    tokenizers = [load_tokenizer(path) for path in options.tokenizer] or [trained(background)]
    print(f"{background.name}, facts: {'bAbI' if options.babi else 'simulator'}")
    print(f"{'tokenizer':40}" + "".join(f"{length:>10}" for length in LENGTHS) + "   1M's text")
    slowest = 0.0
    for tokenizer in tokenizers:
        seconds, digest = measure(Generated(Generator(background, tokenizer), options.babi))
        slowest = max(slowest, seconds["1M"])
        name = f"{tokenizer.path.name}, {tokenizer.vocab_size:,} pieces"
        print(f"{name:40}" + "".join(f"{value:>8.2f} s" for value in seconds.values()) + f"   {digest}")
    claim("BABILong sample of 1M tokens, seconds", slowest, f"< {GOAL}", slowest < GOAL)


def trained(background: Background) -> Tokenizer:
    folder = tempfile.mkdtemp()
    path = Path(folder) / "tokenizer.model"
    train_sentencepiece(islice(background.sentences(Keyed("tokenizer"), 100_000), 10_000), 2048, path)
    return load_tokenizer(path)


def measure(source: Generated) -> tuple[dict[str, float], str]:
    """Seconds of a qa2 sample at each length, and the beginning of 1M's sha256."""
    next(source.samples("qa2", "4k", 1))  # files read
    seconds, digest = {}, ""
    for length in LENGTHS:
        started = time.perf_counter()
        sample = next(source.samples("qa2", length, 1))
        seconds[length] = time.perf_counter() - started
        if length == "1M":
            digest = hashlib.sha256(sample.context.encode()).hexdigest()[:16]
    return seconds, digest


if __name__ == "__main__":
    main()
