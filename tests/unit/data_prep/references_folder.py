"""Small folders of references for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep import ReferenceStore
from data_prep.files import file_checksum
from data_prep.references.store import StoreManifest, write_references
from data_prep.shards.manifest import TokenizerEntry


def write_store(
    folder: Path, files: Sequence[Sequence[Sequence[int]]], length: int = 128, tokenizer: TokenizerEntry | None = None
) -> ReferenceStore:
    """files: for each file, for each reference, its tokens. Reference i is of document i + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        (folder / "tokenizer.model").write_bytes(b"none")
        fingerprint = file_checksum(folder / "tokenizer.model")
        kind = "sentencepiece"
        tokenizer = TokenizerEntry(
            file="tokenizer.model", kind=kind, fingerprint=fingerprint, vocab_size=300, bos_id=1, eos_id=2
        )
    entries, document = [], 0
    for number, references in enumerate(files):
        ends = np.cumsum([0, *map(len, references)]).tolist()
        tokens = np.array([token for reference in references for token in reference], dtype=np.uint16)
        numbers = list(range(document + 1, document + 1 + len(references)))
        entries.append(write_references(folder / f"references-{number:05d}.arrow", tokens, ends, numbers))
        document += len(references)
    StoreManifest(config_hash="x", tokenizer=tokenizer, token_type="uint16", length=length, files=entries).save(folder)
    return ReferenceStore(folder)
