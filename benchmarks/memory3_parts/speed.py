"""Tokens a second of decoding: with memories out of a bank, without, and with the references as prompt text."""

import time
from pathlib import Path

import numpy as np
import torch

from data_prep import ReferenceStore
from data_prep.bank import Bank, BankWriter, merge_bank
from data_prep.manifest import TokenizerEntry
from data_prep.references.store import StoreManifest, write_references
from data_prep.tokenizer import load_tokenizer, train_sentencepiece
from evaluation.memories import MemorySource, as_stored, write_memories
from model import ModelConfig, build_model
from model.config import ExplicitConfig
from model.explicit.generation import Query, generate_with_memory
from model.explicit.references import memory_shape
from model.generation import Sampling
from model.network import LanguageModel

PROMPT = 128
EACH = 5
_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("n", "r", "st", "l")]


class _Random:
    """Finds references at random: the worst case, in which no two chunks share one."""

    def __init__(self, count: int) -> None:
        self._count, self._rng = count, np.random.default_rng(0)

    def search(self, texts: list[str], count: int) -> np.ndarray:
        return self._rng.integers(0, self._count, (len(texts), count))


def _store(folder: Path, references: int) -> ReferenceStore:
    """References of 128 random tokens, and a tokenizer for them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(_WORDS, 40)) for _ in range(2000)]
    path = folder / "tokenizer.model"
    train_sentencepiece(texts, 400, path)
    tokenizer = load_tokenizer(path)
    tokens = rng.integers(260, tokenizer.vocab_size, references * 128).astype(np.uint16)
    file = write_references(
        folder / "references-00000.arrow", tokens, range(0, len(tokens) + 1, 128), range(1, references + 1)
    )
    entry = TokenizerEntry(
        file=path.name,
        kind=tokenizer.kind,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    StoreManifest(config_hash="", tokenizer=entry, token_type="uint16", length=128, files=[file]).save(folder)
    return ReferenceStore(folder)


def _bank(folder: Path, net: LanguageModel, store: ReferenceStore) -> Path:
    with BankWriter(folder, memory_shape(net.config), "bfloat16", "speed", store.fingerprint) as writer:
        for first in range(0, len(store), 64):
            ids = np.arange(first, min(first + 64, len(store)))
            writer.write(ids, as_stored(write_memories(net, *store.read(ids)), "bfloat16"))
    merge_bank(folder)
    return folder


def _rate(net: LanguageModel, prompts: list[Query], source: MemorySource | None, tokens: int) -> float:
    """Generated tokens a second, the prompt's time included."""
    started = time.perf_counter()
    made = sum(1 for _ in generate_with_memory(net, prompts, source, tokens, Sampling(0)))
    return made / (time.perf_counter() - started)


def decoding_speed(work: Path, batch: int, tokens: int, rounds: int = 3) -> tuple[float, float, float]:
    """(with memory, without, with text in the prompt) tokens a second, medians, `batch` streams of 128 tokens in and
    `tokens` out: the published setting.  Every retrieval reads new memories from disk (nothing is cached)."""
    store = _store(work / "references", 2000)
    explicit = ExplicitConfig(bos=(1, 5, 6))
    net = build_model(
        ModelConfig(
            vocab_size=store.manifest.tokenizer.vocab_size,
            hidden_size=512,
            num_layers=8,
            num_heads=8,
            num_kv_heads=2,
            ffn_size=1024,
            segment_length=2048,
            explicit=explicit,
        )
    ).eval()
    folder = _bank(work / "bank", net, store)
    rng = np.random.default_rng(2)
    prompts = [[1, *rng.integers(260, net.config.vocab_size, PROMPT - 1).tolist()] for _ in range(batch)]
    texts = rng.integers(260, net.config.vocab_size, (batch, EACH * 128)).tolist()
    longer = [[*text, *prompt] for text, prompt in zip(texts, prompts, strict=True)]
    found: list[tuple[float, float, float]] = []
    torch.set_grad_enabled(False)
    for _ in range(rounds):
        bank = Bank(folder, "speed", cache_bytes=0)
        source = MemorySource(net, store, _Random(len(store)), bank)
        rates = _rate(net, prompts, source, tokens), _rate(net, prompts, None, tokens), _rate(net, longer, None, tokens)
        source.close()
        found.append(rates)
    middle = np.median(np.array(found), axis=0)
    return float(middle[0]), float(middle[1]), float(middle[2])
