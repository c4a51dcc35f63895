"""From the stream to a rank's micro-batches: every data-parallel size reads the same samples."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep import TokenStream
from training.batches import MicroBatch, Prefetcher, Share, StepBatch, evaluation_shares, iterate, rank_share, read

LENGTH = 64


@pytest.fixture(scope="module")
def stream(prepared_data: Path) -> TokenStream:
    return TokenStream(prepared_data, sequence_length=LENGTH, seed=0)


def joined(batch: StepBatch) -> dict[str, torch.Tensor]:
    names = ("ids", "documents", "labels", "weights")
    return {name: torch.cat([getattr(micro, name) for micro in batch.micro_batches]) for name in names}


def assert_equal(a: StepBatch, b: StepBatch) -> None:
    assert len(a.micro_batches) == len(b.micro_batches)
    left, right = joined(a), joined(b)
    assert all(torch.equal(left[name], right[name]) for name in left)


@given(st.integers(0, 10**12), st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 5))
def test_rank_shares_are_the_step_cut_into_blocks(first: int, data_size: int, per_rank: int) -> None:
    samples = data_size * per_rank
    shares = [rank_share(first, samples, rank, data_size) for rank in range(data_size)]
    assert {len(share) for share in shares} == {per_rank}
    assert [index for share in shares for index in share] == list(range(first, first + samples))


@pytest.mark.parametrize("data_size", [2, 3, 6])
def test_every_data_parallel_size_reads_the_same_tokens(stream: TokenStream, data_size: int) -> None:
    alone = joined(read(stream, rank_share(30, 12, 0, 1), 2))
    shared = [joined(read(stream, rank_share(30, 12, rank, data_size), 2)) for rank in range(data_size)]
    for name, whole in alone.items():
        assert torch.equal(torch.cat([part[name] for part in shared]), whole)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_shares_cover_each_sample_once_in_equal_parts(samples: int, data_size: int, micro: int) -> None:
    shares = [evaluation_shares(samples, rank, data_size, micro) for rank in range(data_size)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % micro == 0
    assert len(shares[0]) * data_size < samples + data_size * micro  # no more filling than needed
    together = [index for share in shares for index in share]
    assert sorted(index for index in together if index >= 0) == list(range(samples))
    assert set(together) <= {-1, *range(samples)}


@pytest.mark.parametrize("data_size", [1, 2, 3])
def test_evaluation_counts_the_same_labels_on_any_number_of_ranks(stream: TokenStream, data_size: int) -> None:
    shares = [evaluation_shares(7, rank, data_size, 2) for rank in range(data_size)]
    assert sum(read(stream, share, 2).valid for share in shares) == stream.batch(range(7)).loss_mask.sum()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_segments_hold_a_sample_together(stream: TokenStream, size: int) -> None:
    whole = joined(read(stream, [3, 8], 2))
    parts = [joined(read(stream, [3, 8], 2, (rank, size))) for rank in range(size)]
    for name in ("ids", "labels", "weights"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[name])
    for before, after in pairwise(parts):
        assert torch.equal(after["documents"][:, 0], before["documents"][:, -1])
    own = [part["documents"][:, 1:] for part in parts]
    assert torch.equal(torch.cat(own, dim=1), whole["documents"][:, 1:])


def test_micro_batches_hold_the_stream_shifted_by_one(stream: TokenStream) -> None:
    indices = [9, 3, 100, 4, 5, 6, 7]
    batch, expected = read(stream, indices, 3), stream.batch(indices)
    assert [len(micro.ids) for micro in batch.micro_batches] == [3, 3, 1]
    found = joined(batch)
    assert found["ids"].dtype == found["labels"].dtype == found["documents"].dtype == torch.int64
    assert found["weights"].dtype == torch.float32
    np.testing.assert_array_equal(found["ids"], expected.tokens[:, :-1])
    np.testing.assert_array_equal(found["labels"], expected.tokens[:, 1:])
    np.testing.assert_array_equal(found["documents"][:, 1:], expected.document_ids[:, :-1])
    assert found["documents"][:, 0].eq(-1).all()  # a sample begins
    np.testing.assert_array_equal(found["weights"], expected.loss_mask.astype(np.float32))
    assert torch.equal(found["ids"][:, 1:], found["labels"][:, :-1])
    assert batch.valid == expected.loss_mask.sum()
    assert all(x.is_contiguous() for micro in batch.micro_batches for x in (micro.ids, micro.labels))


def test_a_label_in_another_document_counts_nothing(stream: TokenStream) -> None:
    """The first tokens of documents are somewhere in these samples, and the only ones that do not count."""
    found = joined(read(stream, range(400), 400))
    whole = stream.batch(range(400)).document_ids
    boundary = torch.from_numpy(whole[:, 1:] != whole[:, :-1])
    assert boundary.any()
    assert torch.equal(found["weights"] == 0, boundary)


@pytest.mark.parametrize("indices", [[-1, 5, -1, 6, -1], [5, -1], [-1, 5], [-1, -1, -1, 0]])
def test_empty_samples_count_nothing_and_move_nothing(stream: TokenStream, indices: list[int]) -> None:
    found = joined(read(stream, indices, 2))
    for row, index in enumerate(indices):
        if index < 0:
            assert not found["weights"][row].any()
        else:
            real = joined(read(stream, [index], 1))
            assert all(torch.equal(found[name][row], real[name][0]) for name in found)
    vocabulary = stream.vocab_size
    assert 0 <= int(found["ids"].min()) <= int(found["ids"].max()) < vocabulary


def test_rank_without_any_sample_still_has_its_micro_batches(stream: TokenStream) -> None:
    batch = read(stream, [-1, -1, -1], 2)
    assert [micro.ids.shape for micro in batch.micro_batches] == [(2, LENGTH), (1, LENGTH)]
    assert batch.valid == 0


def test_pipeline_pulls_inputs_then_labels(stream: TokenStream) -> None:
    batch = read(stream, range(4), 2)
    pulled = list(iterate(batch, torch.device("cpu")))
    assert len(pulled) == 2
    for ((ids, documents), (labels, weights)), micro in zip(pulled, batch.micro_batches, strict=True):
        assert ids is micro.ids
        assert documents is micro.documents
        assert labels is micro.labels
        assert weights is micro.weights


def test_scaled_weights_stay_in_page_locked_memory(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any other a GPU copies only once it has done all before: with several micro-batches it would run dry."""
    micro = read(stream, range(2), 2).micro_batches[0]
    pinned: list[torch.Tensor] = []
    assert torch.equal(micro.scaled(0.5).weights, micro.weights * 0.5)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: x is micro.weights or any(x is y for y in pinned))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    scaled = micro.scaled(0.5)
    assert scaled.weights.is_pinned()
    assert torch.equal(scaled.weights, micro.weights * 0.5)
    assert scaled.ids is micro.ids


def test_the_pipeline_gets_micro_batches_on_the_device_one_at_a_time(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, moved = read(stream, range(4), 2), []
    monkeypatch.setattr(MicroBatch, "to", lambda micro, device: moved.append(device) or micro)
    device = torch.device("cuda", 1)
    pulled = iterate(batch, device)
    assert moved == []
    next(pulled)
    assert moved == [device]


def test_prefetcher_gives_what_reading_gives(stream: TokenStream) -> None:
    prefetcher = Prefetcher(stream, 2)
    steps = [Share(range(0, 4)), Share(range(4, 8)), Share(range(8, 12))]
    try:
        for now, following in zip(steps, [*steps[1:], None], strict=True):
            assert_equal(prefetcher.get(now, following), read(stream, now.indices, 2))
        prefetcher.get(steps[0], steps[1])
        other = Share(range(40, 44))
        assert_equal(prefetcher.get(other, None), read(stream, other.indices, 2))  # not what was announced
        assert_equal(prefetcher.get(steps[1], None), read(stream, range(4, 8), 2))
    finally:
        prefetcher.close()


def test_run_that_changes_its_ranks_trains_on_the_same_tokens_in_the_same_order(stream: TokenStream) -> None:
    """2 ranks for 37 steps, then 3, then 1, at one global batch, against one rank from beginning to end."""
    samples, steps = 6, 60

    def tokens(step: int, data_size: int) -> torch.Tensor:
        shares = [rank_share(step * samples, samples, rank, data_size) for rank in range(data_size)]
        return torch.cat([joined(read(stream, share, 1))["ids"] for share in shares])

    for step in range(steps):
        data_size = 2 if step < 37 else 3 if step < 50 else 1
        assert torch.equal(tokens(step, data_size), tokens(step, 1))
