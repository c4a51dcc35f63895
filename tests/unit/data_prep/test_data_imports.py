"""Tokens that others made: llm.c's and LM2's .bin, Megatron's .bin and .idx; and Arrow files of text."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from data_prep import DataError, Manifest, PrepareConfig, load_tokenizer, prepare
from data_prep.shards.reading import Shard
from data_prep.tokenizers.tokenizer import train_sentencepiece

QUIET = Console(quiet=True)
WORDS = "the memory reads before it is written and every token keeps what was seen"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imports") / "tokenizer.model"
    train_sentencepiece([WORDS] * 50, 300, path)
    return path


def config_of(kind: str, path: Path, tokenizer: Path, **changes: object) -> PrepareConfig:
    source = {"kind": kind, "path": str(path), "name": "web"}
    settings = {"sources": [source], "tokenizer": {"path": str(tokenizer)}, "valid_fraction": 0, "workers": 1}
    return PrepareConfig.model_validate(settings | changes)


def documents_in(folder: Path) -> list[list[int]]:
    manifest = Manifest.load(folder)
    shards = [Shard(folder, entry, manifest.token_type) for entry in manifest.shards]
    return [part.tolist() for shard in shards for part in np.split(shard.tokens, shard.offsets[1:-1])]


def documents_of(tokenizer: Path) -> list[list[int]]:
    model, words = load_tokenizer(tokenizer), WORDS.split()
    return [model.encode(" ".join(words[: n + 1])) for n in range(len(words))]


def write_bin(
    path: Path, documents: list[list[int]], magic: int, version: int, kind: type[np.number], begin: int
) -> None:
    tokens = np.array([token for document in documents for token in [begin, *document]], dtype=kind)
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


@pytest.mark.parametrize(("magic", "version", "kind"), [(20240520, 1, np.uint16), (20240801, 7, np.uint32)])
def test_bin_shards(tokenizer: Path, tmp_path: Path, magic: int, version: int, kind: type) -> None:
    documents, bos = documents_of(tokenizer), load_tokenizer(tokenizer).bos_id
    (tmp_path / "in").mkdir()
    write_bin(tmp_path / "in" / "a.bin", documents[:5], magic, version, kind, bos)
    write_bin(tmp_path / "in" / "b.bin", documents[5:], magic, version, kind, bos)
    prepare(config_of("bin", tmp_path / "in", tokenizer), tmp_path / "data", QUIET)
    assert documents_in(tmp_path / "data") == [[bos, *document, 2] for document in documents]


def test_bin_that_is_none_or_cut_short(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bin(path, documents_of(tokenizer), 20240520, 1, np.uint16, 1)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-2], "cut short"),
        (whole[:100], "it is not a .bin"),
        (b"", "begins with 0"),
        (b"\0" * 2000, "it is not a .bin"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a\.bin: .*{message}"):
            prepare(config_of("bin", path, tokenizer), tmp_path / "data", QUIET)


@pytest.mark.parametrize("form", ["eos ends", "eos begins", "one bos", "more eos than bos"])
def test_bin_that_eos_delimits_is_warned_of(tokenizer: Path, tmp_path: Path, form: str) -> None:
    documents, (bos, eos) = documents_of(tokenizer)[:6], (1, 2)
    tokens = {
        "eos ends": [[*document, eos] for document in documents],
        "eos begins": [[eos, *document] for document in documents],
        "one bos": [[bos], *([*document, eos] for document in documents)],
        "more eos than bos": [[bos, *document, eos, *document, eos] for document in documents],
    }[form]
    flat = [token for document in tokens for token in document]
    write_bin(tmp_path / "a.bin", [flat[1:]], 20240520, 1, np.uint16, flat[0])
    output = io.StringIO()
    prepare(config_of("bin", tmp_path / "a.bin", tokenizer), tmp_path / "data", Console(file=output, width=1000))
    count = 6 if form.startswith("more") else 1
    assert "warning: " in output.getvalue() and f"it is read as {count} documents. If eos delimits" in output.getvalue()
    assert len(documents_in(tmp_path / "data")) == count


@pytest.mark.parametrize("form", ["bos", "bos and eos", "one document", "rest first"])
def test_bin_that_bos_delimits_is_not_warned_of(tokenizer: Path, tmp_path: Path, form: str) -> None:
    documents, (bos, eos) = documents_of(tokenizer)[:6], (1, 2)
    tokens = {
        "bos": [[bos, *document] for document in documents],
        "bos and eos": [[bos, *document, eos] for document in documents],
        "one document": [[bos, *documents[5], eos]],
        "rest first": [[9, 9, eos], *([bos, *document, eos] for document in documents)],
    }[form]
    flat = [token for document in tokens for token in document]
    write_bin(tmp_path / "a.bin", [flat[1:]], 20240520, 1, np.uint16, flat[0])
    output = io.StringIO()
    prepare(config_of("bin", tmp_path / "a.bin", tokenizer), tmp_path / "data", Console(file=output, width=1000))
    assert "warning" not in output.getvalue()
    assert len(documents_in(tmp_path / "data")) == len(tokens)


def test_upper_case_names_of_token_files(tokenizer: Path, tmp_path: Path) -> None:
    documents = documents_of(tokenizer)
    (tmp_path / "in").mkdir()
    write_megatron(tmp_path / "in" / "web", documents, 8, np.uint16, 2)
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(path.name.upper()))
    prepare(config_of("megatron", tmp_path / "in", tokenizer), tmp_path / "data", QUIET)
    assert documents_in(tmp_path / "data") == [[1, *document, 2] for document in documents]
    (tmp_path / "in" / "WEB.IDX").touch()
    prepare(config_of("megatron", tmp_path / "in", tokenizer), tmp_path / "data", QUIET)  # the same content
    write_megatron(tmp_path / "in" / "other", documents[:3], 8, np.uint16, 2)
    (tmp_path / "in" / "other.idx").rename(tmp_path / "in" / "WEB.IDX")
    (tmp_path / "in" / "other.bin").unlink()
    with pytest.raises(DataError, match=r"was prepared from other input; web: 1 changed \(.*WEB\.BIN"):
        prepare(config_of("megatron", tmp_path / "in", tokenizer), tmp_path / "data", QUIET)


def test_tokens_of_another_tokenizer_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", [[5, 6], [7, 50_000]], 20240520, 1, np.uint16, 1)
    with pytest.raises(DataError, match=r"has 300 pieces, but the imported tokens reach from 0 to 50000"):
        prepare(config_of("bin", tmp_path / "a.bin", tokenizer), tmp_path / "data", QUIET)


def write_megatron(path: Path, documents: list[list[int]], code: int, kind: type[np.number], eos: int) -> None:
    """As Megatron's IndexedDatasetBuilder does, with --append-eod."""
    arrays = [np.array([*document, eos], dtype=kind) for document in documents]
    path.with_suffix(".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    lengths = np.array([len(array) for array in arrays], dtype="<i4")
    pointers = np.concatenate([[0], np.cumsum([array.nbytes for array in arrays])[:-1]]).astype("<i8")
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(arrays), len(arrays) + 1)
    index += lengths.tobytes() + pointers.tobytes() + np.arange(len(arrays) + 1, dtype="<i8").tobytes()
    path.with_suffix(".idx").write_bytes(index)


@pytest.mark.parametrize(("code", "kind"), [(4, np.int32), (8, np.uint16)])
def test_megatron_data_set(tokenizer: Path, tmp_path: Path, code: int, kind: type) -> None:
    documents = documents_of(tokenizer)
    write_megatron(tmp_path / "web", documents, code, kind, 2)
    prepare(config_of("megatron", tmp_path / "web.bin", tokenizer), tmp_path / "data", QUIET)
    assert documents_in(tmp_path / "data") == [[1, *document, 2] for document in documents]
    index = tmp_path / "web.idx"
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"web\.idx: is missing, damaged"):
        prepare(config_of("megatron", tmp_path / "web.bin", tokenizer), tmp_path / "other", QUIET)
    index.unlink()
    with pytest.raises(DataError, match=r"web\.idx: is missing, damaged"):
        prepare(config_of("megatron", tmp_path / "web.bin", tokenizer), tmp_path / "other", QUIET)


def test_megatron_agrees_with_megatron_core(tokenizer: Path, tmp_path: Path) -> None:
    """The builder of the library itself writes what we read."""
    torch = pytest.importorskip("torch")
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "web.bin"), dtype=np.uint16)
    documents = documents_of(tokenizer)
    for document in documents:
        builder.add_item(torch.tensor([*document, 2]))
        builder.end_document()
    builder.finalize(str(tmp_path / "web.idx"))
    prepare(config_of("megatron", tmp_path / "web.bin", tokenizer), tmp_path / "data", QUIET)
    assert documents_in(tmp_path / "data") == [[1, *document, 2] for document in documents]


@pytest.mark.parametrize("is_file", [True, False])
def test_arrow_text(tokenizer: Path, tmp_path: Path, is_file: bool) -> None:
    table = pa.table({"text": ["one memory", None, "two"], "id": [1, 2, 3]})
    path = tmp_path / "a.arrow"
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(str(path), table.schema) as writer:
        writer.write_table(table)
    manifest = prepare(config_of("arrow", path, tokenizer), tmp_path / "data", QUIET)
    model = load_tokenizer(tokenizer)
    assert [model.decode(ids[1:-1]) for ids in documents_in(tmp_path / "data")] == ["one memory", "two"]
    assert manifest.skipped["web"].empty == 1
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.arrow: is damaged or not an Arrow file"):
        prepare(config_of("arrow", path, tokenizer), tmp_path / "other", QUIET)


def test_imports_name_their_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.path is missing: 'web' is tokenized already"):
        PrepareConfig.model_validate({"sources": [{"kind": "bin", "path": "x", "name": "web"}]})


def test_hub_without_the_package_says_what_to_install(tokenizer: Path, tmp_path: Path) -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"kind: hf needs the package datasets .*memtrain\[hf\]"):
            prepare(config_of("hf", "owner/name", tokenizer), tmp_path / "data", QUIET)  # type: ignore[arg-type]


def test_data_set_by_name(tokenizer: Path, tmp_path: Path) -> None:
    """A folder stands for the hub: the package opens both by name."""
    pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    (tmp_path / "corpus").mkdir()
    for number in range(3):
        table = pa.table({"text": [f"memory {number}", None, f"token {number}"]})
        pq.write_table(table, tmp_path / "corpus" / f"train-{number:05d}.parquet")
    manifest = prepare(config_of("hf", tmp_path / "corpus", tokenizer), tmp_path / "data", QUIET)
    model = load_tokenizer(tokenizer)
    found = [model.decode(ids[1:-1]) for ids in documents_in(tmp_path / "data")]
    assert found == [f"{word} {number}" for number in range(3) for word in ("memory", "token")]
    assert manifest.skipped["web"].empty == 3
    with pytest.raises(DataError, match=r"nowhere .* cannot be opened"):
        prepare(config_of("hf", tmp_path / "nowhere", tokenizer), tmp_path / "other", QUIET)
