"""`prepare` end to end: reproducible, idempotent, whole or not at all; a changed folder is recognised."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from data_prep import (
    DataError,
    Manifest,
    PrepareConfig,
    PreparedFolder,
    SourceConfig,
    TokenizerConfig,
    load_tokenizer,
    prepare,
)
from data_prep.preparation.plan import Planner, choose_token_type
from data_prep.shards.reading import Shard
from data_prep.shards.writer import ShardWriter

QUIET = Console(quiet=True)


def stdlib_config(**changes: object) -> PrepareConfig:
    settings = {
        "sources": [SourceConfig(kind="python-stdlib")],
        "tokenizer": TokenizerConfig(vocab_size=500, train_bytes=100_000),
        "valid_fraction": 0.2,
        "shard_bytes": 65_536,
        "max_bytes": 400_000,
        "workers": 1,
    }
    return PrepareConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare") / "data"
    prepare(stdlib_config(), folder, QUIET)
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in prepared.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def texts_of(folder: Path, manifest: Manifest) -> dict[str, list[str]]:
    tokenizer = load_tokenizer(folder / manifest.tokenizer.file)
    texts: dict[str, list[str]] = {"train": [], "valid": []}
    for entry in manifest.shards:
        shard = Shard(folder, entry, manifest.token_type)
        for start, end in zip(shard.offsets, shard.offsets[1:], strict=False):
            ids = shard.tokens[start:end].tolist()
            assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            texts[entry.split].append(tokenizer.decode(ids[1:-1]))
    return texts


def test_shards_hold_the_documents_and_nothing_else(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    texts = texts_of(prepared, manifest)
    assert 200_000 < sum(len(text.encode()) for split in texts.values() for text in split) <= 400_000
    assert not set(texts["train"]) & set(texts["valid"])
    assert 0 < len(texts["valid"]) < len(texts["train"])
    originals = {path.read_bytes() for path in Path(json.__file__).parent.parent.rglob("*.py")}
    assert {text.encode() for split in texts.values() for text in split} <= originals
    assert len([entry for entry in manifest.shards if entry.split == "train"]) > 2
    names = {"manifest.json", "inputs.json", "tokenizer.model"} | {entry.file for entry in manifest.shards}
    assert {path.name for path in prepared.iterdir()} == names


def test_other_programs_can_read_the_shards(prepared: Path) -> None:
    entry = Manifest.load(prepared).shards[0]
    table = pa.ipc.open_file(str(prepared / entry.file)).read_all()
    assert table.num_rows == entry.documents
    assert table.schema.field("tokens").type == pa.large_list(pa.uint16())
    assert set(table["source"].to_pylist()) == {"python-stdlib"}
    assert sum(map(len, table["tokens"].to_pylist())) == entry.tokens


def test_output_does_not_depend_on_workers(prepared: Path, tmp_path: Path) -> None:
    prepare(stdlib_config(workers=2), tmp_path / "data", QUIET)
    ours = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert ours == {path.name: path.read_bytes() for path in prepared.iterdir()}


def test_second_call_returns_at_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planner, "make", lambda self: pytest.fail("did the work again"))
    output = io.StringIO()
    manifest = prepare(stdlib_config(workers=2), prepared, Console(file=output, width=300))
    assert manifest == Manifest.load(prepared)
    assert "already prepared" in output.getvalue()


def test_folder_of_other_settings_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepared with other settings .* choose another folder, or delete"):
        prepare(stdlib_config(valid_fraction=0.1), prepared, QUIET)
    (tmp_path / "mine.txt").write_text("notes")
    with pytest.raises(DataError, match="is not a prepared folder"):
        prepare(stdlib_config(), tmp_path, QUIET)
    with pytest.raises(DataError, match=r"mine\.txt: is a file"):
        prepare(stdlib_config(), tmp_path / "mine.txt", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def write_corpus(folder: Path, lines: list[str]) -> SourceConfig:
    folder.mkdir(exist_ok=True)
    (folder / "web.jsonl").write_text("".join(line + "\n" for line in lines))
    return SourceConfig(kind="jsonl", path=folder / "web.jsonl")


def test_duplicates_empties_and_damage_are_counted(prepared: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("one", "two", "one", " ", "three")]
    source = write_corpus(tmp_path / "in", [*lines, "{"])
    again = SourceConfig(kind="jsonl", path=source.path, name="again")
    output = io.StringIO()
    config = PrepareConfig(
        sources=[source, again],
        tokenizer=TokenizerConfig(path=prepared / "tokenizer.model"),
        valid_fraction=0,
        on_error="skip",
        workers=1,
    )
    manifest = prepare(config, tmp_path / "data", Console(file=output, width=300))
    assert texts_of(tmp_path / "data", manifest)["train"] == ["one", "two", "three"]
    assert manifest.skipped["web"].model_dump() == {
        "empty": 1,
        "damaged": 1,
        "duplicates": 1,
        "not_sampled": 0,
        "filtered": 0,
        "near_duplicates": 0,
    }
    assert manifest.skipped["again"].duplicates == 4
    assert "web.jsonl:6: line is no JSON" in output.getvalue()
    assert "web: left out 1 empty, 1 damaged, 1 duplicates" in output.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_after_a_failure(prepared: Path, tmp_path: Path, workers: int) -> None:
    lines = [json.dumps({"text": f"text {number}" * 100}) for number in range(2000)]
    source = write_corpus(tmp_path / "in", [*lines, "{"])
    tokenizer = TokenizerConfig(path=prepared / "tokenizer.model")
    config = PrepareConfig(sources=[source], tokenizer=tokenizer, shard_bytes=4096, workers=workers)
    with pytest.raises(DataError, match=r"web\.jsonl:2001: line is no JSON"):
        prepare(config, tmp_path / "data", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_tokenizer_failure_in_a_worker_is_a_data_error(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in", ['{"text": "tiny"}'])
    config = PrepareConfig(sources=[source], valid_fraction=0, workers=2)
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size is 32000"):
        prepare(config, tmp_path / "data", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("lines", "changes", "said"),
    [
        (['{"text": "one document alone"}'], {"valid_fraction": 0.99}, r"of 1, 1 are held out by valid_fraction 0\.99"),
        (['{"text": "a"}', '{"text": "b"}'], {"valid_fraction": 0.999}, r"of 2, 2 are held out"),
        (['{"text": ""}', '{"text": " "}'], {}, "no document has text"),
    ],
)
def test_nothing_for_a_tokenizer_names_the_cause(
    lines: list[str], changes: dict[str, float], said: str, tmp_path: Path
) -> None:
    settings = PrepareConfig(sources=[write_corpus(tmp_path / "in", lines)], workers=1, **changes)
    with pytest.raises(DataError, match=said) as error:
        prepare(settings, tmp_path / "data", QUIET)
    assert "vocab_size" not in str(error.value)


def test_a_source_name_that_fits_no_file_name() -> None:
    for source in ({"path": "in", "name": "n" * 151}, {"path": "in/" + "n" * 160}):
        with pytest.raises(ValueError, match="set a name of at most 150"):
            SourceConfig(kind="jsonl", **source)
    assert SourceConfig(kind="jsonl", path="in", name="n" * 150).label == "n" * 150


def test_corpus_without_text(prepared: Path, tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in", ['{"text": ""}'])
    config = PrepareConfig(sources=[source], tokenizer=TokenizerConfig(path=prepared / "tokenizer.model"), workers=1)
    with pytest.raises(DataError, match=r"no document is left to train on \(web: 1 empty"):
        prepare(config, tmp_path / "data", QUIET)


def test_vocabulary_above_the_token_type(tmp_path: Path) -> None:
    tokenizer = TokenizerConfig(vocab_size=65_537)
    config = stdlib_config(tokenizer=tokenizer, token_type="uint16")
    with pytest.raises(DataError, match=r"token_type is uint16, which has 65536 values, .* 65537 pieces"):
        prepare(config, tmp_path / "data", QUIET)
    assert [choose_token_type("auto", size) for size in (65_536, 65_537)] == ["uint16", "uint32"]


def test_document_larger_than_a_shard(tmp_path: Path) -> None:
    documents = [np.arange(length, dtype=np.uint32) + 70_000 for length in (10, 5000, 20, 1000, 30)]
    with ShardWriter(tmp_path, "train", "s", "uint32", 4096) as writer:
        for tokens in documents:
            writer.add(tokens)
    found = []
    for entry in writer.entries:
        shard = Shard(tmp_path, entry, "uint32")
        found += np.split(shard.tokens, shard.offsets[1:-1])
    assert [len(tokens) for tokens in found] == [10, 5000, 20, 1000, 30]
    assert all(np.array_equal(*pair) for pair in zip(found, documents, strict=True))
    assert [entry.documents for entry in writer.entries] == [1, 1, 2, 1]
    assert len({path.name for path in tmp_path.iterdir()}) == 4


def test_shards_are_mapped_not_copied(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    before = pa.total_allocated_bytes()
    shard = Shard(prepared, manifest.shards[0], manifest.token_type)
    assert not shard.tokens.flags.owndata
    assert pa.total_allocated_bytes() - before < manifest.shards[0].bytes / 10
    assert str(shard.path) in Path("/proc/self/maps").read_text()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_byte_is_found_at_first_touch(copy: Path) -> None:
    manifest = Manifest.load(copy)
    PreparedFolder(copy).verify()
    flip(copy / manifest.shards[1].file)
    damaged = PreparedFolder(copy)
    with pytest.raises(DataError, match=rf"{manifest.shards[1].file}: shard is damaged"):
        Shard(copy, manifest.shards[1], manifest.token_type).open()
    with pytest.raises(DataError, match=rf"{manifest.shards[1].file}: shard is damaged"):
        damaged.verify()


def test_missing_short_and_foreign_files_are_found_at_opening(copy: Path) -> None:
    manifest = Manifest.load(copy)
    path = copy / manifest.shards[0].file
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match=rf"{path.name}: shard has {len(content) - 8} bytes.*cut short"):
        Manifest.load(copy)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: shard is missing"):
        Manifest.load(copy)
    path.write_bytes(content)
    flip(copy / "tokenizer.model")
    with pytest.raises(DataError, match=r"tokenizer\.model: tokenizer's fingerprint is"):
        Manifest.load(copy)
    (copy / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.model: tokenizer is missing"):
        Manifest.load(copy)


MANIFEST_EDITS = {
    '"version": 1': ('"version": 9', "version"),
    '"skipped"': ('"skiped"', "skiped"),
    '"file": "train-': ('"file": "../train-', "plain file name"),
    '"documents": ': ('"documents": -', "documents"),
    "{": ("", "JSON"),
}


@pytest.mark.parametrize(("old", "new"), MANIFEST_EDITS.items())
def test_edited_manifest_is_refused(copy: Path, old: str, new: tuple[str, str]) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(old, new[0], 1))
    with pytest.raises(DataError, match=rf"manifest\.json: .*{new[1]}"):
        Manifest.load(copy)


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: cannot read it .*prepare_data\.py"):
        Manifest.load(tmp_path)


def test_shard_of_another_layout_is_refused(copy: Path) -> None:
    manifest = Manifest.load(copy)
    with pytest.raises(DataError, match=r"tokens are large_list.*uint16"):
        Shard(copy, manifest.shards[0], "uint32").open()
    fewer = manifest.shards[0].model_copy(update={"documents": 1})
    with pytest.raises(DataError, match="the manifest differs"):
        Shard(copy, fewer, "uint16").open()
