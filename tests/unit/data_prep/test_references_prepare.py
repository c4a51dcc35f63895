"""Documents to references to neighbours: cutting, retrieving, what overlaps left out, in any number of parts."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_prep import DataConfig, DataError, PreparedFolder, TokenStream, load_tokenizer, prepare
from data_prep.config import RetrieverConfig
from data_prep.references.cutting import PARAGRAPH, SENTENCE, WORD, Cutter, document_number
from data_prep.references.neighbours import NeighbourTable
from data_prep.references.overlap import overlaps
from data_prep.references.prepare import ReferencePreparation, prepare_references
from data_prep.references.retrieval import BM25Retriever, build_index, import_extra, open_retriever
from data_prep.references.store import ReferenceStore
from data_prep.tokenizers.tokenizer import train_sentencepiece
from launchers.prepare_data import main

pytestmark = pytest.mark.memory3
QUIET = Console(quiet=True)
ROOT = Path(__file__).resolve().parents[3]
TOPICS = ["violin", "harbour", "glacier", "parliament", "orchid", "telescope", "bakery", "volcano"]


def article(topic: str, number: int) -> str:
    sentences = [
        f"The {topic} of town number {number} was first described in {1800 + 7 * number}.",
        f"Visitors say that a {topic} such as this one is rare, and that {topic} experts come from far away.",
        f'A guide once wrote: "Nobody forgets the {topic}." It is open on most days of the year.',
        "\n\nThe way there leads along the river and over the old bridge. ",
    ]
    return " ".join(sentences * 3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece([article(topic, n) for n, topic in enumerate(TOPICS)] * 4, 400, path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Texts to train on, others to look up, and the prepared training data."""
    root = tmp_path_factory.mktemp("corpus")
    for kind, offset in (("train", 0), ("wiki", 100)):
        (root / kind).mkdir()
        for n, topic in enumerate(TOPICS):
            (root / kind / f"{topic}.txt").write_text(article(topic, n + offset))
    source = {"kind": "text", "path": str(root / "train")}
    settings: dict[str, Any] = {"path": str(root / "data"), "sequence_length": 128}
    settings["prepare"] = {"sources": [source], "tokenizer": {"path": str(tokenizer)}, "valid_fraction": 0}
    settings["prepare"] |= {"workers": 1, "shard_bytes": 4096}
    config = DataConfig.model_validate(settings)
    assert config.prepare is not None
    prepare(config.prepare, config.path, QUIET)
    return root


def data_config(corpus: Path, path: Path, **prepare_settings: object) -> DataConfig:
    found = {"sources": [{"kind": "text", "path": str(corpus / "wiki")}], "workers": 1} | prepare_settings
    references = {"path": str(path), "prepare": {key: value for key, value in found.items() if value is not None}}
    return DataConfig.model_validate({"path": str(corpus / "data"), "sequence_length": 128, "references": references})


def test_references_are_cut_at_the_best_place(tokenizer: Path) -> None:
    model = load_tokenizer(tokenizer)
    cutter, text = Cutter(model, 48), article("violin", 3)
    tokens = np.array(model.encode(text))
    cuts = list(cutter.cuts(tokens))
    assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == len(tokens)
    strengths = cutter.strengths(tokens)
    for begin, end in cuts[:-1]:
        assert 24 < end - begin <= 48
        allowed = strengths[begin + 24 : begin + 48]
        assert strengths[end - 1] == allowed.max()
        assert end - 1 == begin + 24 + max(np.flatnonzero(allowed == allowed.max()))
    assert {strengths[end - 1] for _, end in cuts[:-1]} <= {PARAGRAPH, SENTENCE, WORD}


def test_how_good_a_cut_is(tokenizer: Path) -> None:
    model = load_tokenizer(tokenizer)
    tokens = np.array(model.encode('It cost 3.14 then. "No." He left\n\nand was'))
    strengths, texts = Cutter(model, 32).strengths(tokens), [model.decode([token]) for token in tokens.tolist()]
    ends = {"".join(texts[: i + 1]): int(s) for i, s in enumerate(strengths) if s >= SENTENCE}
    assert [text.replace(" ", "") for text in ends] == [
        'Itcost3.14then.', 'Itcost3.14then."No."', 'Itcost3.14then."No."Heleft\n\n'
    ]  # fmt: skip
    assert list(ends.values()) == [SENTENCE, SENTENCE, PARAGRAPH]


def slow_overlap(sample: list[int], reference: list[int]) -> float:
    """Loops: the longest common subsequence in every stretch of 2 |r| tokens."""
    best = 0
    for begin in range(max(1, len(sample))):
        stretch = sample[begin : begin + 2 * len(reference)]
        table = np.zeros((len(stretch) + 1, len(reference) + 1), dtype=int)
        for i, j in itertools.product(range(len(stretch)), range(len(reference))):
            same = stretch[i] == reference[j]
            table[i + 1, j + 1] = table[i, j] + 1 if same else max(table[i, j + 1], table[i + 1, j])
        best = max(best, int(table[-1, -1]))
    return best / len(reference)


@settings(max_examples=150, deadline=None)
@given(
    sample=st.lists(st.integers(0, 4), max_size=24),
    reference=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    limit=st.sampled_from([0.25, 0.5, 2 / 3, 0.9, 1.0]),
)
def test_overlap_equals_the_slow_reference(sample: list[int], reference: list[int], limit: float) -> None:
    assert overlaps(sample, reference, limit) == (slow_overlap(sample, reference) > limit + 1e-9)


def test_overlap_of_real_sizes() -> None:
    random = np.random.default_rng(0)
    sample = random.integers(0, 30_000, 2049).tolist()
    copied = sample[700:828]
    assert overlaps(sample, copied, 0.9)
    half = [t if i % 2 else 99_999 for i, t in enumerate(copied)]
    assert not overlaps(sample, half, 0.9)
    assert overlaps(sample, half, 0.49)
    assert not overlaps(sample, sample[::16][:128], 0.5)  # in order, but 16 times as far apart
    assert not overlaps(sample, [], 0.9)


def test_neighbours_are_about_the_same_thing(corpus: Path, tmp_path: Path) -> None:
    store = prepare_references(data_config(corpus, tmp_path / "refs", length=48, max_overlap=1.0), QUIET)
    assert store.length == 48
    assert not (tmp_path / "refs" / "documents").exists()
    assert not list((tmp_path / "refs").glob("*.work-*"))
    stream = TokenStream(corpus / "data", sequence_length=128, seed=0, references=tmp_path / "refs")
    model, batch = store.tokenizer(), stream.batch(range(len(stream)))
    assert batch.neighbours is not None
    named = []
    for tokens, documents, row in zip(batch.tokens, batch.document_ids, batch.neighbours, strict=True):
        for u, text in enumerate(store.texts(row)):
            # It asks with what is of its last token's document alone.
            chunk = slice(64 * u, 64 * u + 64)
            query = model.decode(tokens[chunk][documents[chunk] == documents[chunk][-1]].tolist())
            topics = [topic for topic in TOPICS if topic in query]
            if len(topics) == 1 and query.count(topics[0]) > 1:
                named.append(topics[0] in text)
    assert len(named) > 5
    assert all(named)
    assert (batch.neighbours >= 0).mean() > 0.95


def test_nothing_that_stands_in_the_sample_is_retrieved(corpus: Path, tmp_path: Path) -> None:
    """References cut from the training data themselves: without the filter each chunk would find its own text."""
    filtered = data_config(corpus, tmp_path / "a", sources=None, length=32)
    allowed = data_config(corpus, tmp_path / "b", sources=None, length=32, max_overlap=1.0)
    shares = []
    for config in (filtered, allowed):
        store = prepare_references(config, QUIET)
        stream = TokenStream(config.path, sequence_length=128, seed=0, references=store.folder)
        batch = stream.batch(range(len(stream)))
        tokens, lengths = store.read(batch.neighbours.reshape(-1))
        references = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        samples = [row for row in batch.tokens.tolist() for _ in range(2)]
        pairs = list(zip(samples, references, strict=True))
        shares.append(sum(bool(r) and slow_overlap_above(s, r, 0.9) for s, r in pairs) / len(pairs))
        # What a sample's last chunk found is read by the next sample's first.
    assert shares[0] == 0
    assert shares[1] > 0.5


def slow_overlap_above(sample: list[int], reference: list[int], limit: float) -> bool:
    """Without the fast path's short cuts: a stretch for every begin."""
    from rapidfuzz.distance import LCSseq

    span = 2 * len(reference)
    stretches = [sample[begin : begin + span] for begin in range(len(sample))]
    return max(LCSseq.similarity(stretch, reference) for stretch in stretches) > limit * len(reference)


def test_the_own_document_can_be_left_out(corpus: Path, tmp_path: Path) -> None:
    settings = {"sources": None, "length": 32, "max_overlap": 1.0, "exclude_same_document": True}
    store = prepare_references(data_config(corpus, tmp_path, **settings), QUIET)
    folder = PreparedFolder(corpus / "data")
    shards = folder.manifest.shards
    table, shared = NeighbourTable(tmp_path, folder.manifest, shards, 128), 0
    for number, entry in enumerate(shards):
        views = folder.shard(entry).open()
        found = store.documents(table.look_up(number, 0, entry.tokens // 64)).tolist()
        for chunk, other in enumerate(found):
            document = int(views.offsets.searchsorted(64 * chunk + 63, side="right")) - 1
            own = views.tokens[views.offsets[document] + 1 : views.offsets[document + 1] - 1]
            assert other != document_number(own)
            shared += other != 0
    assert shared > 20


def test_parts_give_the_table_that_one_run_gives(corpus: Path, tmp_path: Path) -> None:
    whole, parts = (data_config(corpus, tmp_path / name, task_chunks=3) for name in ("whole", "parts"))
    prepare_references(whole, QUIET)
    preparation = ReferencePreparation(parts, QUIET)
    with pytest.raises(DataError, match="run --references --plan first"):
        preparation.existing_plan()
    tasks = preparation.plan()
    assert len(tasks) > 4
    preparation.run_tasks(tasks[0::2])
    with pytest.raises(DataError, match=r"tasks are not finished \(1, 3"):
        preparation.merge()
    stamps = {path.name: path.stat().st_mtime_ns for path in preparation.work.iterdir()}
    preparation.run_tasks(tasks)  # a second start repeats nothing
    assert stamps.items() <= {path.name: path.stat().st_mtime_ns for path in preparation.work.iterdir()}.items()
    preparation.merge()
    for table in (tmp_path / "whole").glob("neighbours-*/*.arrow"):
        assert (tmp_path / "parts" / table.parent.name / table.name).read_bytes() == table.read_bytes()
    changed = data_config(corpus, tmp_path / "whole", candidates=3)
    with pytest.raises(DataError, match="was prepared with other settings"):
        prepare_references(changed, QUIET)
    with pytest.raises(DataError, match="cut with other settings"):
        prepare_references(DataConfig.model_validate(_other_length(whole)), QUIET)


def _other_length(config: DataConfig) -> dict:
    settings = config.model_dump(mode="json", exclude_none=True)
    settings["sequence_length"] = 256  # another table, of the same references
    settings["references"]["prepare"]["length"] = 64
    return settings


def test_the_command_makes_both_folders(corpus: Path, tokenizer: Path, tmp_path: Path, capsys) -> None:
    data: dict[str, Any] = {"path": str(tmp_path / "data"), "sequence_length": 128}
    data["prepare"] = {
        "sources": [{"kind": "text", "path": str(corpus / "train")}],
        "tokenizer": {"path": str(tokenizer)}, "valid_fraction": 0.2, "workers": 1,
    }  # fmt: skip
    data["references"] = {"path": str(tmp_path / "refs")}
    data["references"]["prepare"] = {"sources": [{"kind": "text", "path": str(corpus / "wiki")}], "workers": 2}
    base = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(base | {"data": data}))
    assert main(["--config", str(tmp_path / "run.yaml")]) == 0
    assert "references are used" in capsys.readouterr().out
    assert main(["--config", str(tmp_path / "run.yaml"), "--references", "--verify"]) == 0
    assert "undamaged" in capsys.readouterr().out
    missing = ["--config", str(tmp_path / "run.yaml"), "--references", "--plan", "data.references=null"]
    assert main(missing) == 2
    assert "data.references.prepare is missing" in capsys.readouterr().err
    store = ReferenceStore(tmp_path / "refs")
    for split in ("train", "valid"):
        stream = TokenStream(tmp_path / "data", split=split, sequence_length=128, seed=0, references=store.folder)
        assert (stream.batch([0]).neighbours >= 0).any()


def test_words_find_what_has_them(corpus: Path, tmp_path: Path) -> None:
    store = prepare_references(data_config(corpus, tmp_path, length=48), QUIET)
    retriever = open_retriever(store)
    assert isinstance(retriever, BM25Retriever)
    found = retriever.search(["The Telescope experts!", "zzzz", "", "volcano 火山"], 5)
    assert found.shape == (4, 5)
    assert all("telescope" in text for text in store.texts(found[0]))
    assert found[1].tolist() == found[2].tolist() == [-1] * 5
    assert "volcano" in store.texts(found[3])[0]


def test_an_index_that_is_damaged_or_foreign_is_refused(corpus: Path, tmp_path: Path) -> None:
    store = prepare_references(data_config(corpus, tmp_path, length=48), QUIET)
    path = max((tmp_path / "index").glob("*.npy"), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{path.name}: is missing or damaged"):
        open_retriever(store)
    path.write_bytes(whole)
    store.fingerprint = "other"
    with pytest.raises(DataError, match="made from other references"):
        open_retriever(store)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of the topics' words: an embedding as good as a network's for these texts."""
    vectors = np.array([[text.lower().count(topic) + 1e-3 for topic in TOPICS] for text in texts], dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat"])
def test_embeddings_find_what_is_near(corpus: Path, tmp_path: Path, index: str) -> None:
    pytest.importorskip("faiss", reason="the extra dense is not installed")
    store = prepare_references(data_config(corpus, tmp_path, length=48), QUIET)
    dense = RetrieverConfig(kind="dense", index=index)
    build_index(store, dense, embed)
    found = open_retriever(store, embed).search(["a glacier", "an orchid"], 3)
    assert all("glacier" in text for text in store.texts(found[0]))
    assert all("orchid" in text for text in store.texts(found[1]))
    with pytest.raises(DataError, match=r"index is 'IVF4000,Flat', which .* cannot train"):
        build_index(store, RetrieverConfig(kind="dense", index="IVF4000,Flat"), embed)


def test_a_missing_library_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=r'sentence_transformers is not installed .*pip install -e "\.\[dense\]"'):
        import_extra("sentence_transformers", "dense")


def test_references_are_of_one_document_each(corpus: Path, tmp_path: Path) -> None:
    store = prepare_references(data_config(corpus, tmp_path, sources=None), QUIET)
    folder = PreparedFolder(corpus / "data")
    ids = np.arange(len(store))
    tokens, lengths = store.read(ids)
    documents: dict[int, list[int]] = {}
    for row, length, number in zip(tokens.tolist(), lengths.tolist(), store.documents(ids).tolist(), strict=True):
        documents.setdefault(number, []).extend(row[:length])
    originals = []
    for entry in folder.manifest.shards:
        views = folder.shard(entry).open()
        originals += [part.tolist()[1:-1] for part in np.split(views.tokens, views.offsets[1:-1])]
    assert list(documents.values()) == originals


def test_references_of_a_corpus_that_has_changed_are_not_already_prepared(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    for n, topic in enumerate(TOPICS):
        (tmp_path / "wiki" / f"{topic}.txt").write_text(article(topic, n + 100))
    config = data_config(corpus, tmp_path / "refs", sources=[{"kind": "text", "path": str(tmp_path / "wiki")}])
    prepare_references(config, QUIET)
    prepare_references(config, QUIET)  # nothing has changed
    (tmp_path / "wiki" / "late.txt").write_text(article("violin", 7))
    with pytest.raises(DataError, match=r"refs: was prepared from other input; wiki: 1 new \(.*late\.txt\)"):
        prepare_references(config, QUIET)
