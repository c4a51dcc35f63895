"""References and neighbour tables: what is written is read, at any cut; damage and foreign folders are found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import DataConfig, DataError, Manifest, ReferenceStore, TokenStream
from data_prep.references.neighbours import CHUNK, NeighbourTable, chunks_in, write_table
from tests.unit.data_prep.data_folder import write_folder
from tests.unit.data_prep.references_folder import write_store

SIZES = {"web": [500, 900, 300, 1000], "books": [1500], "notes": [700]}
LENGTH = 128


@st.composite
def stores(draw: st.DrawFn) -> list[list[list[int]]]:
    reference = st.lists(st.integers(3, 299), min_size=1, max_size=16)
    return draw(st.lists(st.lists(reference, min_size=1, max_size=6), min_size=1, max_size=3))


@pytest.mark.memory3
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=stores(), data=st.data())
def test_a_store_gives_back_what_was_written(tmp_path_factory, files, data) -> None:
    store = write_store(tmp_path_factory.mktemp("store"), files, length=16)
    flat = [reference for file in files for reference in file]
    assert len(store) == len(flat)
    assert store.tokens == sum(map(len, flat))
    ids = np.array(data.draw(st.lists(st.integers(-1, len(flat) - 1), max_size=12)), dtype=np.int64)
    tokens, lengths = store.read(ids)
    assert (tokens.shape, tokens.dtype, lengths.dtype) == ((len(ids), 16), np.int64, np.int64)
    expected = [[] if i < 0 else flat[i] for i in ids.tolist()]
    assert lengths.tolist() == [len(reference) for reference in expected]
    assert tokens.tolist() == [reference + [0] * (16 - len(reference)) for reference in expected]
    assert store.documents(ids).tolist() == [0 if i < 0 else i + 1 for i in ids.tolist()]


@pytest.mark.memory3
def test_a_store_refuses_ids_that_are_not_there(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[[3, 4]], [[5]]], length=16)
    for wrong in (2, -2):
        with pytest.raises(DataError, match=f"references 0 to 1, {wrong} was asked for"):
            store.read(np.array([0, wrong]))


@pytest.mark.memory3
def test_damage_to_a_store_is_found(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[[3, 4]], [[5] * 9]], length=16)
    path = tmp_path / store.manifest.files[1].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="cut short"):
        ReferenceStore(tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    damaged = ReferenceStore(tmp_path)
    assert damaged.read(np.array([0]))[1].tolist() == [2]  # the other file is whole
    with pytest.raises(DataError, match=f"{path.name}: is damaged"):
        damaged.read(np.array([1]))
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: is missing"):
        ReferenceStore(tmp_path)


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A data folder of several shards, its references, and the table that was written."""
    folder = write_folder(tmp_path_factory.mktemp("data"), SIZES)
    manifest = Manifest.load(folder)
    store = write_store(tmp_path_factory.mktemp("refs"), [[[7] * 5] * 40], tokenizer=manifest.tokenizer)
    random = np.random.default_rng(0)
    columns = {e.file: random.integers(-1, 40, chunks_in(e)).astype(np.int32) for e in manifest.shards}
    write_table(store, manifest, LENGTH, columns)
    return folder, store.folder, columns


@pytest.mark.memory3
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_stream_gives_each_chunk_its_neighbour(tabled, shuffle: bool) -> None:
    folder, references, columns = tabled
    stream = TokenStream(folder, sequence_length=LENGTH, seed=1, shuffle=shuffle, references=references)
    batch = stream.batch(range(len(stream)))
    assert batch.neighbours.shape == (len(stream), LENGTH // CHUNK)
    assert batch.neighbours.dtype == np.int64
    for g in range(len(stream)):
        origin = stream.describe(g)
        column, first = columns[origin.shard].tolist(), origin.window * LENGTH // CHUNK
        assert batch.neighbours[g].tolist() == column[first : first + LENGTH // CHUNK]
    assert stream.batch([]).neighbours.shape == (0, LENGTH // CHUNK)


@pytest.mark.memory3
def test_a_stream_without_references_has_no_neighbours(tabled) -> None:
    batch = TokenStream(tabled[0], sequence_length=LENGTH, seed=1).batch([0])
    assert batch.neighbours is None


@pytest.mark.memory3
def test_a_table_of_something_else_is_refused(tabled, tmp_path: Path) -> None:
    folder, references, columns = tabled
    with pytest.raises(DataError, match="must be a multiple of 64"):
        TokenStream(folder, sequence_length=100, seed=0, references=references)
    with pytest.raises(DataError, match=r"manifest.json: cannot read it .*prepare_data"):
        TokenStream(folder, sequence_length=2 * LENGTH, seed=0, references=references)
    manifest = Manifest.load(folder)
    other = write_store(tmp_path / "a", [[[7]]], tokenizer=manifest.tokenizer)
    write_table(other, manifest, LENGTH, columns)
    write_store(tmp_path / "a", [[[8]]], tokenizer=manifest.tokenizer)  # the references are made anew
    with pytest.raises(DataError, match="was made with references"):
        TokenStream(folder, sequence_length=LENGTH, seed=0, references=tmp_path / "a")
    write_store(tmp_path / "b", [[[7]]])
    with pytest.raises(DataError, match="was made with tokenizer"):
        TokenStream(folder, sequence_length=LENGTH, seed=0, references=tmp_path / "b")


@pytest.mark.memory3
def test_damage_to_a_table_is_found(tabled, tmp_path: Path) -> None:
    folder, _, columns = tabled
    manifest = Manifest.load(folder)
    store = write_store(tmp_path, [[[7] * 5] * 40], tokenizer=manifest.tokenizer)
    table = write_table(store, manifest, LENGTH, columns)
    path = sorted(table.glob("*.arrow"))[0]
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    path.write_bytes(flipped)
    stream = TokenStream(folder, sequence_length=LENGTH, seed=1, references=tmp_path)
    with pytest.raises(DataError, match=r"neighbours-.*is damaged"):
        _ = stream.batch(range(len(stream))).neighbours


@pytest.mark.memory3
def test_looking_up_where_a_chunk_begins_and_elsewhere(tabled) -> None:
    folder, references, columns = tabled
    manifest = Manifest.load(folder)
    table = NeighbourTable(references, manifest, manifest.shards, LENGTH)
    column = columns[manifest.shards[0].file].tolist()
    assert table.look_up(0, 2 * CHUNK, 2).tolist() == column[2:4]
    for between in (3, -CHUNK):
        with pytest.raises(DataError, match="begins no chunk"):
            table.look_up(0, between, 1)


@pytest.mark.memory3
def test_the_configuration_takes_a_folder_or_a_section() -> None:
    short = DataConfig.model_validate({"path": "d", "sequence_length": 128, "references": "refs"})
    long = DataConfig.model_validate({"path": "d", "sequence_length": 128, "references": {"path": "refs"}})
    assert short == long
    with pytest.raises(ValueError, match="multiple of 64"):
        DataConfig.model_validate({"path": "d", "sequence_length": 100, "references": "refs"})
