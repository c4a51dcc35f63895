"""The stream: pure in the sample number, every window once an epoch, mixes kept to and changed in place."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import Batch, DataError, TokenStream
from data_prep.shards.manifest import ShardEntry
from data_prep.stream.mixing import MixSchedule, Pattern, quotas_of
from data_prep.stream.windows import SourceWindows
from tests.unit.data_prep.data_folder import write_folder

LENGTH = 16
# Two shards of "web" (a shard takes 2,048 tokens), one of "books", and "notes", too short for a window.
SIZES = {"web": [5, 400, 1, 1, 30, 16, 17, 1500, 33, 700, 2, 90], "books": [40] * 20, "notes": [9]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("stream"), SIZES)


def shard_tokens() -> dict[str, list[list[int]]]:
    """The obvious reference: per source the shards, per shard (token, ...) as SIZES lays them out."""
    return {"web": [list(range(3, 2006)), list(range(2006, 2798))], "books": [list(range(2798, 3598))]}


def document_of() -> dict[int, int]:
    """token -> number of its document."""
    lengths = [length for source in SIZES.values() for length in source]
    return dict(enumerate(np.repeat(np.arange(len(lengths)), lengths).tolist(), start=3))


def all_windows() -> dict[str, list[tuple[int, ...]]]:
    return {
        source: [
            tuple(shard[start : start + LENGTH + 1])
            for shard in shards
            for start in range(0, len(shard), LENGTH)
            if start + LENGTH + 1 <= len(shard)
        ]
        for source, shards in shard_tokens().items()
    }


def rows(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row) for row in batch.tokens.tolist()]


def test_the_reference_is_the_folder(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=0)
    assert [entry.tokens for entry in stream.manifest.shards] == [2003, 792, 800, 9]
    assert stream.tokens == sum(sum(lengths) for lengths in SIZES.values())
    assert stream.vocab_size == stream.tokens + 3
    assert len(stream) == sum(map(len, all_windows().values()))


def test_types_and_shapes(folder: Path) -> None:
    batch = TokenStream(folder, sequence_length=LENGTH, seed=0).batch(range(5))
    assert (batch.tokens.shape, batch.tokens.dtype) == ((5, LENGTH + 1), np.uint16)
    assert (batch.document_ids.shape, batch.document_ids.dtype) == ((5, LENGTH + 1), np.int32)
    assert (batch.loss_mask.shape, batch.loss_mask.dtype) == ((5, LENGTH), np.bool_)
    assert TokenStream(folder, sequence_length=LENGTH, seed=0).batch([]).tokens.shape == (0, LENGTH + 1)


@pytest.mark.parametrize("length", [1, 2, LENGTH, 300])
def test_document_ids_and_loss_mask_equal_the_slow_reference(folder: Path, length: int) -> None:
    stream = TokenStream(folder, sequence_length=length, seed=3)
    document = document_of()
    batch = stream.batch(range(len(stream)))
    for tokens, ids, mask in zip(batch.tokens, batch.document_ids, batch.loss_mask, strict=True):
        documents = [document[token] for token in tokens.tolist()]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(documents))}
        assert ids.tolist() == [numbers[name] for name in documents]
        assert mask.tolist() == [a == b for a, b in itertools.pairwise(documents)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_by_size_every_window_comes_once_an_epoch(folder: Path, shuffle: bool) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=1, shuffle=shuffle)
    expected = Counter(window for windows in all_windows().values() for window in windows)
    epochs = [rows(stream.batch(range(e * len(stream), (e + 1) * len(stream)))) for e in range(3)]
    assert all(Counter(epoch) == expected for epoch in epochs)
    assert (epochs[0] == epochs[1]) is not shuffle


def test_unshuffled_windows_come_in_order(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=1, shuffle=False, mix={"web": 2, "books": 1})
    for source, windows in all_windows().items():
        indices = [g for g in range(2000) if stream.describe(g).source == source]
        assert rows(stream.batch(indices)) == [windows[i % len(windows)] for i in range(len(indices))]


def test_samples_are_pure(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=5)
    whole = stream.batch(range(3000))
    order = np.random.default_rng(0).permutation(3000)
    fresh = TokenStream(folder, sequence_length=LENGTH, seed=5).batch(order.tolist())
    assert np.array_equal(fresh.tokens, whole.tokens[order])
    assert np.array_equal(fresh.document_ids, whole.document_ids[order])
    assert np.array_equal(fresh.loss_mask, whole.loss_mask[order])
    other = TokenStream(folder, sequence_length=LENGTH, seed=6)
    assert not np.array_equal(other.batch(range(100)).tokens, whole.tokens[:100])
    assert other.fingerprint != stream.fingerprint


def test_far_away_samples(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=5)
    far = 10**15
    assert stream.describe(far).epoch > 10**12
    assert np.array_equal(stream.batch([far]).tokens, stream.batch([far + 1, far]).tokens[1:])


def test_describe_points_at_the_tokens(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=2)
    names = {"train-web-00000.arrow": ("web", 0), "train-web-00001.arrow": ("web", 1)}
    names["train-books-00000.arrow"] = ("books", 0)
    for g in range(300):
        origin = stream.describe(g)
        source, number = names[origin.shard]
        tokens = shard_tokens()[source][number]
        assert origin.source == source
        assert rows(stream.batch([g])) == [tuple(tokens[origin.window * LENGTH :][: LENGTH + 1])]
        assert origin.epoch == g // len(stream)


def test_mix_keeps_its_weights_and_passes_every_window(folder: Path) -> None:
    stream = TokenStream(folder, sequence_length=LENGTH, seed=2, mix={"web": 1, "books": 3})
    assert Counter(stream.describe(g).source for g in range(4096)) == {"web": 1024, "books": 3072}
    # Spread out: no stretch of 40 samples is far from its share.
    books = np.array([stream.describe(g).source == "books" for g in range(4096)])
    assert np.abs(np.convolve(books, np.ones(40), "valid") - 30).max() <= 2
    for source, windows in all_windows().items():
        indices = [g for g in range(1200) if stream.describe(g).source == source]
        epoch = rows(stream.batch(indices[: len(windows)]))
        assert Counter(epoch) == Counter(windows)


@pytest.mark.parametrize("change", [1, 777, 4096, 9000])
def test_sources_go_on_where_they_stood_when_the_mix_changes(folder: Path, change: int) -> None:
    first, then = {"web": 0.3, "books": 0.7}, {"web": 0.9, "books": 0.1}
    before = TokenStream(folder, sequence_length=LENGTH, seed=2, mix=first)
    changing = TokenStream(
        folder, sequence_length=LENGTH, seed=2, mix=[(0, first), (change, then), (change + 500, None)]
    )
    assert np.array_equal(changing.batch(range(change)).tokens, before.batch(range(change)).tokens)
    end = change + 1000
    for source in ("web", "books"):
        mine = [g for g in range(end) if changing.describe(g).source == source]
        alone = TokenStream(folder, sequence_length=LENGTH, seed=2, mix={source: 1})
        assert rows(changing.batch(mine)) == rows(alone.batch(range(len(mine))))
    late = Counter(changing.describe(g).source for g in range(change, change + 500))
    assert abs(late["web"] - 450) <= 2


BAD_MIXES = {
    "unknown": ({"wbe": 1.0}, r"no source 'wbe' \(did you mean 'web'\?\)"),
    "negative": ({"web": -1.0}, "weight of 'web' is -1"),
    "nan": ({"web": math.nan}, "weight of 'web' is nan"),
    "zero": ({"web": 0.0}, "all weights are 0"),
    "empty": ({}, "all weights are 0"),
    "no window": ({"web": 1.0, "notes": 1.0}, "'notes' has weight 1.0, but no shard with 17 tokens"),
    "late": ([(5, None)], "the first must be 0"),
    "order": ([(0, None), (9, None), (9, None)], "the rest increase"),
}


@pytest.mark.parametrize("name", BAD_MIXES)
def test_bad_mix_is_refused(folder: Path, name: str) -> None:
    mix, message = BAD_MIXES[name]
    with pytest.raises(DataError, match=message):
        TokenStream(folder, sequence_length=LENGTH, seed=0, mix=mix)  # type: ignore[arg-type]


def test_splits_without_a_window_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'train' has 3604 tokens .*2004 that .*sequence_length 2003"):
        TokenStream(folder, sequence_length=2003, seed=0)
    with pytest.raises(DataError, match="'valid' has 0 tokens"):
        TokenStream(folder, split="valid", sequence_length=LENGTH, seed=0)
    with pytest.raises(DataError, match="sequence_length is 0"):
        TokenStream(folder, sequence_length=0, seed=0)
    with pytest.raises(DataError, match="sample index is -1"):
        TokenStream(folder, sequence_length=LENGTH, seed=0).batch([-1])


def test_damaged_shard_is_never_trained_on(tmp_path: Path) -> None:
    path = write_folder(tmp_path, SIZES) / "train-books-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    stream = TokenStream(tmp_path, sequence_length=LENGTH, seed=0)
    web = [g for g in range(50) if stream.describe(g).source == "web"]
    assert stream.batch(web).tokens.shape == (len(web), LENGTH + 1)
    with pytest.raises(DataError, match=r"train-books-00000\.arrow: shard is damaged"):
        stream.batch(range(50))


weights = st.lists(st.floats(0, 1e300) | st.integers(0, 5).map(float), min_size=1, max_size=30).filter(any)


@given(weights=weights, period=st.integers(30, 5000))
def test_quotas_fill_the_period_by_weight(weights: list[float], period: int) -> None:
    quotas = quotas_of(weights, period)
    assert quotas.sum() == period
    assert [quota > 0 for quota in quotas] == [weight > 0 for weight in weights]
    order = np.argsort(weights, kind="stable")
    assert all(a <= b + 1 for a, b in zip(quotas[order], quotas[order][1:], strict=False))


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_quotas_by_size_are_exact(sizes: list[int]) -> None:
    assert quotas_of(sizes, sum(sizes)).tolist() == sizes


@settings(max_examples=30)
@given(quotas=st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any), samples=st.integers(0, 5000))
def test_pattern_counts_and_ranks(quotas: list[int], samples: int) -> None:
    pattern = Pattern(np.array(quotas))
    assert np.bincount(pattern.source, minlength=len(quotas)).tolist() == quotas
    for source in range(len(quotas)):
        assert pattern.rank[pattern.source == source].tolist() == list(range(quotas[source]))
    repeated = np.tile(pattern.source, samples // pattern.period + 1)[:samples]
    assert pattern.counts(samples).tolist() == np.bincount(repeated, minlength=len(quotas)).tolist()


def test_schedule_numbers_each_source_without_gaps() -> None:
    windows = {"a": 50, "b": 7, "c": 900}
    mix = [(0, {"a": 1.0}), (13, {"a": 1.0, "b": 2.0, "c": 0.01}), (5000, {"c": 1.0, "b": 1.0})]
    source, number = MixSchedule(mix, windows, 8).locate(np.arange(12_000))
    for current in range(3):
        assert number[source == current].tolist() == list(range(np.count_nonzero(source == current)))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(lambda counts: sum(counts) > LENGTH),
    together=st.integers(1, 14),
    key=st.integers(0, 2**64 - 1),
)
def test_shuffling_among_a_few_shards_passes_every_window_once(counts: list[int], together: int, key: int) -> None:
    entries = [
        ShardEntry(file=f"{n}.arrow", split="train", source="s", documents=1, tokens=tokens, bytes=0, xxh3="")
        for n, tokens in enumerate(counts)
    ]
    source = SourceWindows("s", entries, 0, LENGTH, together)
    if not source.windows:
        return
    shards, starts = source.places(np.arange(source.windows), key)
    plain = source.places(np.arange(source.windows), None)
    assert sorted(zip(shards.tolist(), starts.tolist(), strict=True)) == list(
        zip(*map(np.ndarray.tolist, plain), strict=True)
    )
    # A window of `together` shards moves over the source: no shard is come back to once its group is done.
    order = list(dict.fromkeys(shards.tolist()))
    last = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in order}
    first = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in order}
    for place in range(source.windows):
        assert sum(first[shard] <= place <= last[shard] for shard in order) <= together
