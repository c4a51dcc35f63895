"""Small prepared folders for tests of what reads them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_prep import Manifest
from data_prep.files import file_checksum
from data_prep.shards.manifest import ShardEntry, TokenizerEntry
from data_prep.shards.writer import ShardWriter


def write_folder(folder: Path, sizes: Mapping[str, list[int]]) -> Path:
    """Every token of every source is another number, so that a sample shows where it was cut."""
    entries: list[ShardEntry] = []
    token = 3
    for source, lengths in sizes.items():
        with ShardWriter(folder, "train", source, "uint16", 4096) as writer:
            for length in lengths:
                writer.add(np.arange(token, token + length, dtype=np.uint16))
                token += length
        entries += writer.entries
    (folder / "tokenizer.model").write_bytes(b"any")
    tokenizer = TokenizerEntry(
        file="tokenizer.model",
        kind="sentencepiece",
        fingerprint=file_checksum(folder / "tokenizer.model"),
        vocab_size=token,
        bos_id=1,
        eos_id=2,
    )
    Manifest(config_hash="x", tokenizer=tokenizer, token_type="uint16", shards=entries).save(folder)
    return folder
