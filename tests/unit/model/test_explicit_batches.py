"""References on their way from the neighbour table to the micro-batches, and what a run says of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import TokenStream
from data_prep.references import ReferenceStore, write_table
from data_prep.references.neighbours import chunks_in
from model.config import ExplicitConfig
from tests.distributed.test_explicit_parity import config_with
from tests.unit.data_prep.references_folder import write_store
from training.batches import Prefetcher, Share, read
from training.config import parse_config
from training.errors import ConfigError
from training.references import ReferenceReader, explained, with_bos
from training.streams import open_references

pytestmark = pytest.mark.memory3
LENGTH, CHUNKS, REFERENCES = 256, 4, 50
EXPLICIT = ExplicitConfig(bos=(1, 2), reference_length=12, tokens=3)


@pytest.fixture(scope="module")
def stream(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    """Reference r is r + 1 tokens of the id r, up to 10; some chunks retrieved none."""
    data = TokenStream(prepared_data, sequence_length=LENGTH, seed=0).manifest
    folder = tmp_path_factory.mktemp("references") / "store"
    folder.mkdir()
    (folder / data.tokenizer.file).write_bytes((prepared_data / data.tokenizer.file).read_bytes())
    texts = [[r] * min(r + 1, 10) for r in range(REFERENCES)]
    store = write_store(folder, [texts], length=10, tokenizer=data.tokenizer)
    generator = np.random.default_rng(0)
    retrieved = {e.file: generator.integers(-1, REFERENCES, chunks_in(e), dtype=np.int32) for e in data.shards}
    write_table(store, data, LENGTH, retrieved)
    return TokenStream(prepared_data, sequence_length=LENGTH, seed=0, references=folder)


def reader(stream: TokenStream, causal: bool) -> ReferenceReader:
    assert stream.table is not None
    return ReferenceReader(stream.table.store, EXPLICIT.model_copy(update={"causal": causal}))


@pytest.mark.parametrize("causal", [True, False])
def test_each_chunk_brings_what_it_or_the_one_before_retrieved(stream: TokenStream, causal: bool) -> None:
    batch = stream.batch(range(30))
    micro_batches = read(stream, range(30), 2, references=reader(stream, causal)).micro_batches
    names = ("references", "reference_lengths", "reference_document_ids")
    tokens, lengths, document_ids = (torch.cat([getattr(m, name) for m in micro_batches]) for name in names)
    assert tokens.shape == (30, CHUNKS, 12) and lengths.shape == document_ids.shape == (30, CHUNKS)
    assert lengths.dtype == document_ids.dtype == torch.int64
    neighbours = batch.neighbours
    assert neighbours is not None and (neighbours == -1).any()
    for row in range(30):
        for chunk in range(CHUNKS):
            asking = chunk - 1 if causal else chunk  # the chunk whose tokens retrieved the reference
            reference = int(neighbours[row, asking]) if asking >= 0 else -1
            length = 0 if reference < 0 else min(reference + 1, 10)
            assert lengths[row, chunk] == length
            assert tokens[row, chunk].tolist() == [max(reference, 0)] * length + [0] * (12 - length)
            document = batch.document_ids[row, 64 * asking + 63] if asking >= 0 else -1
            assert document_ids[row, chunk] == document


def test_references_are_read_only_where_they_are_wanted(stream: TokenStream) -> None:
    prefetcher = Prefetcher(stream, 2, references=reader(stream, True))
    try:
        without, wanted = Share(range(4)), Share(range(4), references=True)
        assert all(m.references is None for m in prefetcher.get(without, wanted).micro_batches)
        assert all(m.references is not None for m in prefetcher.get(wanted, None).micro_batches)
    finally:
        prefetcher.close()


def test_the_bos_comes_from_the_datas_tokenizer_and_is_said(prepared_data: Path) -> None:
    config = config_with()
    open_bos = config.model.explicit.model_copy(update={"bos": (), "causal": False})  # type: ignore[union-attr]
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"path": prepared_data}),
            "model": config.model.model_copy(update={"explicit": open_bos}),
        }
    )
    resolved = with_bos(config)
    bos = resolved.model.explicit.bos  # type: ignore[union-attr]
    from data_prep import PreparedFolder

    tokenizer = PreparedFolder(prepared_data).tokenizer()
    assert bos[0] == tokenizer.bos_id and tokenizer.decode(list(bos[1:])).strip() == "Reference:"
    assert with_bos(resolved) is resolved
    lines = explained(resolved)
    assert str(list(bos)) in lines[0] and "NOT CAUSAL" in lines[1]


def test_longer_references_than_the_model_takes_are_refused(stream: TokenStream) -> None:
    config = config_with()
    assert isinstance(stream.table.store, ReferenceStore)  # type: ignore[union-attr]
    short = config.model.explicit.model_copy(update={"reference_length": 9})  # type: ignore[union-attr]
    config = config.model_copy(update={"model": config.model.model_copy(update={"explicit": short})})
    with pytest.raises(ConfigError, match=r"9, but references in .* have up to 10 tokens"):
        open_references(config, stream)


def test_references_can_be_left_again() -> None:
    phases = [{**p.model_dump(), "name": str(i), "memory": i == 1} for i, p in enumerate(config_with().phases * 2)]
    with pytest.raises(ConfigError, match="drop the trained memory"):
        parse_config(config_with("lm2").model_dump() | {"phases": phases[:3]})
    assert len(parse_config(config_with().model_dump() | {"phases": phases[:3]}).phases) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__references": None}, r"data\.references is missing"),
        ({"model__explicit__chunk_length": 32}, "for every 64 tokens; set it to 64"),
        ({"phases__1__trains": "memory"}, "no parameters of its own"),
    ],
)
def test_runs_that_cannot_read_references_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_with(**changes)
