"""Which files a source reads: links, hidden files, upper case; what should be readable and is not."""

import gzip
import os
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from data_prep import DataError, PrepareConfig, SourceConfig, prepare
from data_prep.sources.documents import DocumentReader
from data_prep.sources.places import list_files
from data_prep.sources.problems import Problems
from tests.unit.data_prep.test_data_tasks import tokenizer_of

QUIET = Console(quiet=True)
ENDINGS = (".jsonl", ".jsonl.gz")


def line(text: str) -> str:
    return f'{{"text": "{text}"}}\n'


def texts(path: Path, problems: Problems | None = None) -> set[str]:
    reader = DocumentReader(SourceConfig(kind="jsonl", path=path, name="web"))
    return {document.text for document in reader.read(problems or Problems())}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a linked folder and a linked file, upper case, an editor's hidden copies, and other kinds."""
    folder, store = tmp_path / "corpus", tmp_path / "store"
    for made in (folder / ".ipynb_checkpoints", folder / "deep" / ".git", store / "more"):
        made.mkdir(parents=True)
    (folder / "a.jsonl").write_text(line("plain"))
    (folder / "B.JSONL").write_text(line("upper"))
    (folder / "C.Jsonl.GZ").write_bytes(gzip.compress(line("packed").encode()))
    (folder / ".hidden.jsonl").write_text(line("hidden file"))
    (folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text(line("hidden folder"))
    (folder / "deep" / ".git" / "x.jsonl").write_text(line("hidden below"))
    (folder / "notes.csv").write_text("1,2")
    (store / "b.jsonl").write_text(line("linked folder"))
    (store / "more" / "c.jsonl").write_text(line("below a linked folder"))
    (tmp_path / "alone.jsonl").write_text(line("linked file"))
    (folder / "sub").symlink_to("../store")
    (folder / "d.jsonl").symlink_to("../alone.jsonl")
    return folder


READ = {"plain", "upper", "packed", "linked folder", "below a linked folder", "linked file"}


def test_what_is_read_and_what_is_not(corpus: Path) -> None:
    assert texts(corpus) == READ
    found = list_files(corpus, ENDINGS)
    assert "6 files of" in found.summary()
    assert "left out: 3 hidden, 1 of other kinds (1 .csv)" in found.summary()
    assert [file.name for file in found.files] == sorted(file.name for file in found.files)


def test_a_circle_of_links_ends(corpus: Path) -> None:
    (corpus / "deep" / "up").symlink_to(corpus)
    (corpus / "deep" / "self").symlink_to(".")
    (corpus / "sub2").symlink_to("../store")
    assert texts(corpus) == READ
    assert list_files(corpus, ENDINGS).again == 3
    assert len(list_files(corpus, ENDINGS).files) == 6
    assert texts(corpus / "**" / "*.jsonl") == READ - {"upper", "packed"}
    assert len(list_files(corpus / "**" / "*.jsonl", ENDINGS).files) == 4


def test_what_is_named_is_read_and_a_glob_enters_folders(corpus: Path) -> None:
    assert texts(corpus / ".ipynb_checkpoints") == {"hidden folder"}
    assert texts(corpus / ".hidden.jsonl") == {"hidden file"}
    assert texts(corpus / "su*") == {"linked folder", "below a linked folder"}
    (corpus.parent / "link").symlink_to(corpus)
    assert texts(corpus.parent / "link") == READ


@pytest.mark.parametrize("name", ["gone", "gone.jsonl", "deep/loop"])
def test_broken_links_are_fatal_or_counted(corpus: Path, name: str) -> None:
    (corpus / name).symlink_to("loop" if name == "deep/loop" else "../nowhere")
    with pytest.raises(DataError, match=rf"{name}: is a link to .*, which cannot be read.*on_error: skip"):
        texts(corpus)
    skipping = Problems("skip")
    assert texts(corpus, skipping) == READ
    assert skipping.damaged == 1 and name in skipping.messages[0]


def test_a_broken_link_is_counted_in_the_manifest(corpus: Path, tmp_path: Path) -> None:
    (corpus / "gone").symlink_to("../nowhere")
    settings = {
        "sources": [{"kind": "jsonl", "path": str(corpus), "name": "web"}],
        "tokenizer": {"path": str(tokenizer_of(tmp_path))},
        "valid_fraction": 0,
        "workers": 1,
    }
    with pytest.raises(DataError, match="gone: is a link"):
        prepare(PrepareConfig.model_validate(settings), tmp_path / "data", QUIET)
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.work").exists()
    manifest = prepare(PrepareConfig.model_validate(settings | {"on_error": "skip"}), tmp_path / "data", QUIET)
    assert manifest.skipped["web"].damaged == 1
    assert "gone: is a link" in (tmp_path / "data" / "skipped.txt").read_text()
    assert sum(entry.documents for entry in manifest.shards) == len(READ)


def test_folders_and_files_that_cannot_be_read(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.iterdir

    def refuses(path: Path):  # as for a user who may not: tests may run as root, who may
        if path.name == "store" or path.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "iterdir", refuses)
    with pytest.raises(DataError, match=r"sub: the folder cannot be listed \(Permission denied\)"):
        texts(corpus)
    skipping = Problems("skip")
    assert texts(corpus, skipping) == READ - {"linked folder", "below a linked folder"}
    assert skipping.damaged == 1


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails for everybody")
@pytest.mark.parametrize(("kind", "name"), [("jsonl", "z.jsonl"), ("text", "z.txt"), ("jsonl", "z.jsonl.gz")])
def test_a_file_that_the_system_does_not_read(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).symlink_to("/proc/self/mem")
    source = SourceConfig(kind=kind, path=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(Input/output error\); make it readable"):
        list(DocumentReader(source).read(Problems()))
    skipping = Problems("skip")
    assert list(DocumentReader(source).read(skipping)) == []
    assert skipping.damaged == 1


def test_places_that_hold_nothing_say_why(tmp_path: Path) -> None:
    (tmp_path / ".a.jsonl").write_text(line("x"))
    with pytest.raises(DataError, match=r"holds no \*\.jsonl, .* \(left out: 1 hidden\); check path and kind"):
        list_files(tmp_path, ENDINGS)
    (tmp_path / "away").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"away is a link to nowhere, which does not exist"):
        list_files(tmp_path / "away", ENDINGS)
    with pytest.raises(DataError, match=r"\(.*away: is a link to nowhere"):
        list_files(tmp_path, ENDINGS)
    with pytest.raises(DataError, match=r"cannot be read|does not exist"):
        list_files(Path("x" * 300), ENDINGS)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "b.jsonl").write_text(line("x"))
    (tmp_path / "away").unlink()
    found = list_files(tmp_path, ENDINGS)  # does not wait for the pipe
    assert len(found.files) == 1 and found.others == {"device or pipe": 1}


def test_remote_folders_too() -> None:
    system = fsspec.filesystem("memory")
    for name in ("a.jsonl", "B.JSONL", ".c.jsonl", ".ipynb_checkpoints/d.jsonl", "e.csv"):
        system.pipe_file(f"/discovery/{name}", line(name).encode())
    found = list_files("memory://discovery", ENDINGS)
    assert [Path(file.name).name for file in found.files] == ["B.JSONL", "a.jsonl"]
    assert (found.hidden, found.others) == (2, {".csv": 1})
