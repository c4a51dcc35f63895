"""The bank: what is written is read, whoever writes it; damage and foreign banks are found; sizes as published."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import DataError
from data_prep.bank import Bank, BankWriter, MemoryShape, Quantiser, delete_memories, merge_bank
from data_prep.bank.layout import DType, bank_factory, from_float32, to_float32
from data_prep.bank.quantise import faiss_factory

pytestmark = pytest.mark.memory3
SHAPE = (2, 2, 1, 3, 8)  # memory layers, key and value, heads, tokens, head width
WHOSE = ("model-a", "refs-a")
PUBLISHED = MemoryShape(layers=22, heads=8, tokens=8, width=80)


def memories(ids: list[int], shape: tuple[int, ...] = SHAPE, dtype: DType = "bfloat16") -> np.ndarray:
    """A memory for each id that no other id has."""
    rows = [np.random.default_rng(id).normal(size=shape).astype(np.float32) for id in ids]
    return from_float32(np.stack(rows), dtype) if rows else from_float32(np.empty((0, *shape), np.float32), dtype)


def write(folder: Path, ids: list[int], dtype: DType = "bfloat16", **options: Any) -> None:
    with BankWriter(folder, SHAPE, dtype, *WHOSE, shard_bytes=1000, **options) as writer:
        for first in range(0, len(ids), 3):
            part = ids[first : first + 3]
            writer.write(np.array(part, dtype=np.int64), memories(part, dtype=dtype))


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), min_size=1, max_size=3),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    cache=st.sampled_from([0, 500, 10_000]),
    data=st.data(),
)
def test_a_bank_gives_back_what_several_wrote(tmp_path_factory, parts, dtype, cache, data) -> None:
    folder = tmp_path_factory.mktemp("bank")
    everything = sorted({id for part in parts for id in part})
    for number, part in enumerate(parts):
        write(folder, part, dtype, part=str(number))
    if not everything:
        with pytest.raises(DataError, match="has no shard"):
            merge_bank(folder)
        return
    assert merge_bank(folder).memories == len(everything)
    with Bank(folder, "model-a", store_fingerprint="refs-a", cache_bytes=cache) as bank:
        assert len(bank) == len(everything)
        for _ in range(3):
            ids = data.draw(st.lists(st.sampled_from([-1, *everything]), max_size=6))
            found = bank.read(np.array(ids, dtype=np.int64))
            assert found.shape == (len(ids), *SHAPE)
            for id, memory in zip(ids, found, strict=True):
                expected = np.zeros(SHAPE) if id < 0 else memories([id], dtype=dtype)[0]
                np.testing.assert_array_equal(memory, expected)
        bank.verify()
        unknown = next(id for id in range(70) if id not in everything)
        with pytest.raises(DataError, match=f"no memory of reference {unknown}"):
            bank.read(np.array([unknown]))


def test_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    ours = from_float32(values, "bfloat16")
    np.testing.assert_array_equal(ours, theirs.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(to_float32(ours, "bfloat16"), theirs.float().numpy())


def test_another_models_bank_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    merge_bank(tmp_path)
    with pytest.raises(DataError, match="written by model model-a, this one is model-b"):
        Bank(tmp_path, "model-b")
    with pytest.raises(DataError, match="written from references refs-a"):
        Bank(tmp_path, "model-a", store_fingerprint="refs-b")
    with BankWriter(tmp_path, SHAPE, "bfloat16", "model-b", "refs-a", part="9") as writer:
        writer.write(np.array([4]), memories([4]))
    with pytest.raises(DataError, match="was written with model 'model-b'"):
        merge_bank(tmp_path)
    with pytest.raises(DataError, match="was written with"):
        BankWriter(tmp_path, SHAPE, "bfloat16", *WHOSE).written()


def test_memories_of_another_form_are_refused(tmp_path: Path) -> None:
    writer = BankWriter(tmp_path, SHAPE, "bfloat16", *WHOSE)
    with pytest.raises(DataError, match="this bank takes uint16"):
        writer.write(np.array([0]), np.zeros((1, *SHAPE), dtype=np.float32))
    with pytest.raises(DataError, match="this bank takes"):
        writer.write(np.array([0]), np.zeros((2, *SHAPE), dtype=np.uint16))
    with pytest.raises(DataError, match="a memory is"):
        BankWriter(tmp_path, (2, 3, 1, 3, 8), "bfloat16", *WHOSE)


def test_damage_is_found(tmp_path: Path) -> None:
    write(tmp_path, list(range(12)))
    manifest = merge_bank(tmp_path)
    path = tmp_path / manifest.files[0].file
    whole = path.read_bytes()
    place = whole.index(memories([1])[0].tobytes())
    path.write_bytes(whole[: place + 5] + bytes([whole[place + 5] ^ 8]) + whole[place + 6 :])
    bank = Bank(tmp_path, "model-a")
    np.testing.assert_array_equal(bank.read(np.array([0, 2])), memories([0, 2]))  # its neighbours are whole
    for act in (lambda: bank.read(np.array([1])), bank.verify):
        with pytest.raises(DataError, match=f"{path.name}: memory 1 is damaged"):
            act()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=f"{path.name}: has .* bytes, the manifest says"):
        Bank(tmp_path, "model-a")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: is missing"):
        Bank(tmp_path, "model-a")
    path.write_bytes(whole)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"model-a"', '"model-x"'))
    with pytest.raises(DataError, match="edited or damaged"):
        Bank(tmp_path, "model-x")


def test_a_writer_goes_on_after_a_kill(tmp_path: Path) -> None:
    writer = BankWriter(tmp_path, SHAPE, "bfloat16", *WHOSE, shard_bytes=1000)
    writer.write(np.arange(9), memories(list(range(9))))  # two whole shards, and one memory that is lost
    done = BankWriter(tmp_path, SHAPE, "bfloat16", *WHOSE).written().tolist()
    assert 0 < len(done) < 9
    write(tmp_path, [id for id in range(9) if id not in done])
    merge_bank(tmp_path)
    np.testing.assert_array_equal(Bank(tmp_path, "model-a").read(np.arange(9)), memories(list(range(9))))


def test_adds_and_deletes(tmp_path: Path) -> None:
    write(tmp_path, list(range(6)))
    merge_bank(tmp_path)
    before = Bank(tmp_path, "model-a")
    delete_memories(tmp_path, np.array([1, 4]))
    bank = Bank(tmp_path, "model-a")
    assert len(bank) == 4
    assert 1 not in bank
    with pytest.raises(DataError, match="no memory of reference 4"):
        bank.read(np.array([4]))
    write(tmp_path, [20, 1], part="later")
    merge_bank(tmp_path)
    bank = Bank(tmp_path, "model-a")
    assert len(bank) == 6  # 1 was written anew
    assert 4 not in bank
    np.testing.assert_array_equal(bank.read(np.array([20, 1, 0])), memories([20, 1, 0]))
    np.testing.assert_array_equal(before.read(np.array([1, 4])), memories([1, 4]))  # who had it open reads on


def test_of_a_memory_that_was_written_twice_the_later_counts(tmp_path: Path) -> None:
    write(tmp_path, [3], part="z")
    merge_bank(tmp_path)
    with BankWriter(tmp_path, SHAPE, "bfloat16", *WHOSE, part="a") as writer:
        writer.write(np.array([3]), memories([99]))
    merge_bank(tmp_path)
    np.testing.assert_array_equal(Bank(tmp_path, "model-a").read(np.array([3])), memories([99]))


def test_a_cold_bank_is_written_as_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, [0])
    merge_bank(tmp_path)
    asked: list[int] = []

    def encode(ids: np.ndarray) -> np.ndarray:
        asked.extend(ids.tolist())
        return memories(ids.tolist())

    with Bank(tmp_path, "model-a", write_missing=encode, cache_bytes=0) as bank:
        for ids in ([0, 5], [5, 7], [7, 0, 5]):
            np.testing.assert_array_equal(bank.read(np.array(ids)), memories(ids))
    assert asked == [5, 7]  # once each, although nothing is cached
    warm = Bank(tmp_path, "model-a")
    assert len(warm) == 3
    np.testing.assert_array_equal(warm.read(np.array([5, 7, 0])), memories([5, 7, 0]))
    with Bank(tmp_path, "model-a", write_missing=encode, shard_bytes=300) as bank:
        bank.read(np.arange(10, 20))
        assert len(bank) == 13  # stored before it is closed


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    write(tmp_path, list(range(8)))
    merge_bank(tmp_path)
    each = MemoryShape.of(SHAPE).bytes()
    bank = Bank(tmp_path, "model-a", cache_bytes=3 * each)
    for ids in ([0, 1, 2], [0], [3]):  # 1 is the one used longest ago
        bank.read(np.array(ids))
    assert (bank.hits, bank.misses) == (1, 4)
    bank.read(np.array([0, 2, 3]))
    assert (bank.hits, bank.misses) == (4, 4)
    bank.read(np.array([1]))
    assert (bank.hits, bank.misses) == (4, 5)


def test_prefetched_memories_are_in_the_cache(tmp_path: Path) -> None:
    write(tmp_path, list(range(8)))
    merge_bank(tmp_path)
    with Bank(tmp_path, "model-a") as bank:
        bank.prefetch(np.array([2, 5, -1, 700])).result(timeout=20)
        misses = bank.misses
        np.testing.assert_array_equal(bank.read(np.array([5, 2])), memories([5, 2]))
        assert bank.misses == misses == 2


def test_sizes_are_the_papers() -> None:
    """arXiv 2407.01178: 450,560 bytes; 45.9 TB, and 4.02 TB with the published codec, of 1.12e8 references."""
    assert PUBLISHED.bytes("bfloat16") == 450_560
    references, tebi = 1.12e8, 2**40
    assert references * PUBLISHED.bytes() / tebi == pytest.approx(45.9, rel=2e-3)
    assert references * PUBLISHED.coded_bytes(14) / tebi == pytest.approx(4.02, rel=2e-3)


def test_a_memory_of_the_published_shape_takes_that_much_on_disk(tmp_path: Path) -> None:
    shape = PUBLISHED.array
    with BankWriter(tmp_path, shape, "bfloat16", *WHOSE) as writer:
        writer.write(np.arange(20), np.zeros((20, *shape), dtype=np.uint16))
    merge_bank(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == pytest.approx(20 * 450_560, rel=1e-3)


def test_the_codec_of_each_head_width() -> None:
    faiss = pytest.importorskip("faiss", reason="the extra quantise is not installed")
    assert bank_factory(80) == faiss_factory("OPQ20x80-Residual2x14-PQ8x10", 80) == "OPQ20_80,Residual2x14,PQ8x10"
    for width in (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 256):
        code_bytes = faiss.index_factory(width, bank_factory(width)).sa_code_size()
        assert 2 * width / code_bytes >= 11
    for width in (8, 33):
        with pytest.raises(DataError, match=f"head width {width} must be even and at least 12"):
            bank_factory(width)


def test_a_quantised_bank_is_smaller_and_near(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra quantise is not installed")
    shape = (2, 2, 2, 8, 16)
    random = np.random.default_rng(0)
    centres = random.normal(size=(2, 40, 16)).astype(np.float32)  # keys and values that lie about a few places
    chosen = random.integers(0, 40, (120, 2, 2, 2, 8))
    clean = np.stack([centres[0][chosen[:, :, 0]], centres[1][chosen[:, :, 1]]], axis=2)
    stored = from_float32(clean + 0.01 * random.normal(size=clean.shape).astype(np.float32), "bfloat16")
    codec = Quantiser.train(stored[:100], "bfloat16", "Residual2x4,PQ2x4")
    assert 32 / codec.code_bytes >= 11
    codec.save(tmp_path)
    with BankWriter(tmp_path, shape, "bfloat16", *WHOSE, quantiser=Quantiser.load(tmp_path)) as writer:
        writer.write(np.arange(120), stored)
    manifest = merge_bank(tmp_path)
    assert manifest.quantiser is not None
    bank = Bank(tmp_path, "model-a")
    found = bank.read(np.arange(120))
    assert found.dtype == np.uint16
    direct = codec.decode(codec.encode(stored, "bfloat16"), MemoryShape.of(shape), "bfloat16")
    np.testing.assert_array_equal(found, direct)
    left = to_float32(found, "bfloat16") - clean
    assert (left**2).mean() < 0.25 * (clean**2).mean()
    assert (tmp_path / manifest.files[0].file).stat().st_size < 120 * math.prod(shape) * 2 / 7
    path = tmp_path / manifest.quantiser.values
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DataError, match="is missing or damaged"):
        Bank(tmp_path, "model-a")


def test_a_codec_that_cannot_be_trained_says_why() -> None:
    pytest.importorskip("faiss", reason="the extra quantise is not installed")
    few = memories([0, 1])
    with pytest.raises(DataError, match="cannot be trained on 12 vectors"):
        Quantiser.train(few, "bfloat16", "PQ2x8")
    with pytest.raises(DataError, match="is not a FAISS codec"):
        Quantiser.train(few, "bfloat16", "nonsense")
