"""Reading documents: every format, and every way in which one can be damaged, named by file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from data_prep import DataError, PrepareConfig, SourceConfig
from data_prep.sources.documents import Document, DocumentReader
from data_prep.sources.problems import Problems
from data_prep.sources.selection import sample_hash, sample_texts, sample_threshold, split_of

TEXTS = ["first\n", "second \u00e9\t", "third"]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS).encode()


def read(source: SourceConfig, problems: Problems | None = None) -> list[Document]:
    return list(DocumentReader(source).read(problems or Problems()))


def write_jsonl(folder: Path) -> Path:
    (folder / "a.jsonl").write_bytes(LINES)
    return folder / "a.jsonl"


def write_gzip(folder: Path) -> Path:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]))
    return folder / "a.jsonl.gz"


def write_zstd(folder: Path) -> Path:
    frames = [zstandard.compress(LINES[:20]), zstandard.compress(LINES[20:])]
    (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
    return folder / "a.jsonl.zst"


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_zstd])
def test_jsonl(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    expected = [Document(text, "a", f"{path}:{line}") for line, text in enumerate(TEXTS, start=1)]
    assert read(SourceConfig(kind="jsonl", path=path)) == expected
    assert [document.text for document in read(SourceConfig(kind="jsonl", path=tmp_path))] == TEXTS
    assert [document.text for document in read(SourceConfig(kind="jsonl", path=tmp_path / "*"))] == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"body": pa.array([*TEXTS, None], kind)}), path, row_group_size=2)
    problems = Problems()
    documents = read(SourceConfig(kind="parquet", path=path, text_field="body", name="books"), problems)
    assert documents == [Document(text, "books", f"{path}:{row}") for row, text in enumerate(TEXTS, start=1)]
    assert problems.empty == 1


def test_text_folder_is_recursive_sorted_and_exact(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    for name, content in {
        "z/1.txt": b"one\r\n",
        "b.md": b"\xef\xbb\xbftwo",
        "a.txt": b" \n",
        "c.rst": b"no",
    }.items():
        (tmp_path / name).write_bytes(content)
    problems = Problems()
    documents = read(SourceConfig(kind="text", path=tmp_path), problems)
    assert [(document.text, Path(document.origin).name) for document in documents] == [
        ("two", "b.md"),
        ("one\r\n", "1.txt"),
    ]
    assert problems.empty == 1


def test_standard_library_has_code_and_no_packages() -> None:
    problems = Problems()
    documents = read(SourceConfig(kind="python-stdlib"), problems)
    assert any(document.origin.endswith("argparse.py") for document in documents)
    assert not any("site-packages" in document.origin for document in documents)
    assert problems.empty > 0


def test_bytes_read_add_up_to_the_files(tmp_path: Path) -> None:
    for write in (write_jsonl, write_gzip, write_zstd):
        write(tmp_path)
    reader = DocumentReader(SourceConfig(kind="jsonl", path=tmp_path))
    steps: list[int] = []
    list(reader.read(Problems(), steps.append))
    assert sum(steps) == reader.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert min(steps) >= 0


BAD_LINES = {
    b"{broken\n": "line is no JSON",
    b"[1]\n": "is a JSON list",
    b'{"txet": "x"}\n': r"no key 'text' \(did you mean 'txet'\?\)",
    b'{"text": 3}\n': "'text' is a int; it must be a string",
    b'{"text": "\xff"}\n': "0xff, which is not UTF-8",
    b'{"text": "\\ud800"}\n': "lone surrogate",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items())
def test_bad_line_is_named_or_skipped(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + line + LINES)
    source = SourceConfig(kind="jsonl", path=path)
    with pytest.raises(DataError, match=rf"a\.jsonl:4: .*{message}"):
        read(source)
    skipping = Problems("skip")
    assert [document.text for document in read(source, skipping)] == TEXTS + TEXTS
    assert skipping.damaged == 1
    assert "a.jsonl:4" in skipping.messages[0]


@pytest.mark.parametrize("write", [write_gzip, write_zstd])
def test_file_cut_short_is_named(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=rf"{path.name}:\d+: compressed data is damaged or cut short"):
        read(SourceConfig(kind="jsonl", path=path))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS, "n": [1, 2, 3]}), tmp_path / "b.parquet")
    for field, message in {"bodi": "did you mean 'body'", "n": "of type int64; it must be string"}.items():
        with pytest.raises(DataError, match=rf"b\.parquet: .*{message}"):
            read(SourceConfig(kind="parquet", path=tmp_path, text_field=field))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"b\.parquet: is damaged or not a Parquet file"):
        read(SourceConfig(kind="parquet", path=tmp_path))


def test_undecodable_text_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt: byte 3 is 0xe9, which is not UTF-8; .*on_error: skip"):
        read(SourceConfig(kind="text", path=tmp_path))


def test_paths_without_documents(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        _ = DocumentReader(SourceConfig(kind="text", path=tmp_path / "nowhere")).files
    with pytest.raises(DataError, match=r"holds no \*\.parquet file"):
        _ = DocumentReader(SourceConfig(kind="parquet", path=tmp_path)).files


def test_config_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="path is missing: kind text"):
        SourceConfig(kind="text")
    with pytest.raises(ValidationError, match="remove path"):
        SourceConfig(kind="python-stdlib", path=tmp_path)
    with pytest.raises(ValidationError, match="becomes part of file names"):
        SourceConfig(kind="python-stdlib", name="../x")
    twin = SourceConfig(kind="text", path=Path("x/web"))
    with pytest.raises(ValidationError, match="two are called 'web'"):
        PrepareConfig(sources=[twin, SourceConfig(kind="jsonl", path=Path("y/web.jsonl.gz"))])


def test_default_names() -> None:
    paths = {
        "d/web.jsonl.zst": "web",
        "d/books/*.jsonl": "books",
        "my corpus/": "my-corpus",
        "*.jsonl": "jsonl",
    }
    assert {path: SourceConfig(kind="jsonl", path=Path(path)).label for path in paths} == paths


def documents_of(count: int) -> list[Document]:
    return [Document(f"text number {number} " * (number % 7 + 1), "s", str(number)) for number in range(count)]


def test_split_has_the_asked_share_and_ignores_order() -> None:
    held_out = [document.bytes for document in documents_of(5000) if split_of(document.bytes, 0.1) == "valid"]
    assert 400 < len(held_out) < 600
    assert all(split_of(text, 0.2) == "valid" for text in held_out)  # a larger share only adds
    assert all(split_of(document.bytes, 0.0) == "train" for document in documents_of(500))


def test_sample_is_the_smallest_hashes_in_any_order() -> None:
    documents = documents_of(500)
    threshold = sample_threshold(documents, 5000)
    assert threshold == sample_threshold([*reversed(documents), *documents[:100]], 5000)
    chosen = [document.text for document in documents if sample_hash(document.bytes) <= threshold]
    rest = [document.text for document in documents if sample_hash(document.bytes) > threshold]
    next_one = min(rest, key=lambda text: sample_hash(text.encode()))
    assert sum(map(len, chosen)) <= 5000 < sum(map(len, chosen)) + len(next_one)
    assert sample_texts(documents, 5000) == sample_texts([*reversed(documents), *documents[:100]], 5000)
    assert sum(map(len, sample_texts(documents, 5000))) <= 5000
    assert len(sample_texts(documents, 1)) == 1


def test_empty_files_and_documents_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": " "}\n{"text": null}\n')
    problems = Problems()
    assert [document.text for document in read(SourceConfig(kind="jsonl", path=tmp_path), problems)] == ["x"]
    assert problems.empty == 3
    assert problems.messages == [f"{tmp_path}/{name}: is empty" for name in ("a.jsonl", "b.jsonl:2", "b.jsonl:3")]


def encoded(kind: str) -> pa.Array:
    """TEXTS and a null, stored in one of Arrow's ways."""
    values = [*TEXTS, None]
    match kind:
        case "dictionary":
            return pa.array(values).dictionary_encode()
        case "large dictionary":
            return pa.array(values, pa.large_string()).dictionary_encode()
        case "view":
            return pa.array(values, pa.string_view())
        case "runs":
            return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4], pa.int32()), pa.array(values))
    return pa.nulls(4)


KINDS = ["dictionary", "large dictionary", "view", "runs", "null"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_arrow_texts_however_they_are_stored(tmp_path: Path, kind: str, stream: bool) -> None:
    table, path = pa.table({"n": [0, 1, 2, 3], "text": encoded(kind)}), tmp_path / "a.arrow"
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    problems = Problems()
    found = [document.text for document in read(SourceConfig(kind="arrow", path=path), problems)]
    assert found == ([] if kind == "null" else TEXTS)
    assert problems.empty == 4 - len(found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "runs"])  # which Parquet cannot hold
def test_parquet_texts_however_they_are_stored(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": encoded(kind)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["of a part that has some"]}), tmp_path / "b.parquet")
    found = [document.text for document in read(SourceConfig(kind="parquet", path=tmp_path))]
    assert found == [*([] if kind == "null" else TEXTS), "of a part that has some"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.string()), pa.dictionary(pa.int8(), pa.int64())])
def test_columns_that_hold_no_text_are_still_refused(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array([], kind)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' is of type .*; it must be string"):
        read(SourceConfig(kind="parquet", path=tmp_path))


def test_integers_of_any_length_beside_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long, deep = "9" * 5000, "[" * 100_000
    lines = [
        f'{{"text": "one", "id": {long}}}',
        f'{{"id": [-{long}, {{"x": {long}}}], "text": "two"}}',
        '{"text": "3"}',
    ]
    path.write_text("\n".join(lines))
    assert [document.text for document in read(SourceConfig(kind="jsonl", path=path))] == ["one", "two", "3"]
    for line, said in ((f'{{"text": {long}}}', "must be a string"), (deep, "nested too deeply"), (long, "an object")):
        path.write_text(line)
        with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{said}"):
            read(SourceConfig(kind="jsonl", path=path))


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_zstandard_of_long_windows(tmp_path: Path, window_log: int) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # of unknown size: the window stays
    (tmp_path / "a.jsonl.zst").write_bytes(packed.compress(LINES) + packed.flush())
    assert zstandard.get_frame_parameters((tmp_path / "a.jsonl.zst").read_bytes()).window_size == 2**window_log
    assert [document.text for document in read(SourceConfig(kind="jsonl", path=tmp_path))] == TEXTS


def test_zstandard_above_the_bound_is_named(tmp_path: Path) -> None:
    magic, descriptor, window = b"\x28\xb5\x2f\xfd", b"\x00", bytes([(35 - 10) << 3])  # a window of 2^35 bytes
    (tmp_path / "a.jsonl.zst").write_bytes(magic + descriptor + window + b"\x01\x00\x00")
    with pytest.raises(DataError, match=r"a\.jsonl\.zst:1: its window is above 2,147,483,648 bytes"):
        read(SourceConfig(kind="jsonl", path=tmp_path))


@pytest.mark.parametrize("kind", ["plain", "dictionary", "view"])
def test_damaged_arrow_is_named_and_ends_no_process(tmp_path: Path, kind: str) -> None:
    """Reading follows offsets and indices wherever they lead."""
    texts = ["one of the texts here", "two of the texts here"]
    column = pa.array(texts).dictionary_encode() if kind == "dictionary" else pa.array(texts)
    if kind == "view":
        column = pa.array(texts, pa.string_view())
    table, path = pa.table({"text": column}), tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    raw = path.read_bytes()
    sought = {"plain": np.array([0, 21, 42], "<i4"), "dictionary": np.array([0, 1], "<i4")}.get(kind, texts[1][:4])
    at = raw.index(sought.tobytes() if isinstance(sought, np.ndarray) else np.array(21, "<i4").tobytes() + b"two ")
    path.write_bytes(raw[:at] + np.array([7, 1 << 30], "<i4").tobytes() + raw[at + 8 :])
    with pytest.raises(DataError, match=r"a\.arrow: is damaged or not an Arrow file"):
        read(SourceConfig(kind="arrow", path=path))
