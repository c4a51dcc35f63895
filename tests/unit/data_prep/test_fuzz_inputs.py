"""Inputs of any shape: a sentence and a documented exit code, or what was typed. `make fuzz` tries many more."""

import contextlib
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_prep import DataError, SourceConfig, load_tokenizer
from data_prep.sources.documents import DocumentReader
from data_prep.sources.problems import Problems
from evaluation.questions import load_questions
from launchers import import_hf, prepare_data
from model.llama_config import to_llama
from tests.reference.small import NONE, tiny
from tests.unit.data_prep.test_data_tasks import tokenizer_of, write_run
from tests.unit.data_prep.test_data_tokenizer import add_tokens, write_hf
from tests.unit.training.test_hf_folder import save

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))  # 0: a few, always the same


def fuzz(examples: int) -> settings:
    """So many examples, or FUZZ_EXAMPLES new ones each time."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


LONG = "an integer of 5,000 digits"  # which `dumped` writes in its place
NUMBERS = st.one_of(st.integers(), st.floats(), st.just(LONG), st.booleans())
SCALARS = st.one_of(st.none(), NUMBERS, st.text(), st.sampled_from(["\u2028a\x85b", "\ud800", "<s>", "010", "1e4"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip


def dumped(value: Any, ascii_only: bool = True) -> str:
    return json.dumps(value, ensure_ascii=ascii_only).replace(f'"{LONG}"', "-" + "7" * 5000)


def encodable(text: str) -> bool:
    return not any(0xD800 <= ord(sign) < 0xE000 for sign in text)


RECORDS = st.fixed_dictionaries({}, optional={"text": st.one_of(st.text(), SCALARS, VALUES), "id": VALUES})
LINES = st.lists(
    st.one_of(RECORDS, VALUES, st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b""))), max_size=6
)


@fuzz(150)
@given(lines=LINES, packing=st.sampled_from(["", ".gz", ".zst", ".GZ"]), cut=st.integers(0, 60), plain=st.booleans())
def test_jsonl(place: Path, lines: list[Any], packing: str, cut: int, plain: bool) -> None:
    raw = b""
    for line in lines:
        text = line if isinstance(line, bytes) else dumped(line, not plain).encode("utf-8", "surrogatepass")
        raw += text + (b"\r\n" if cut % 2 else b"\n")
    packers: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".zst": zstandard.compress}
    packed = packers.get(packing, gzip.compress)(raw)
    path = place / f"a.jsonl{packing}"
    path.write_bytes(packed[: len(packed) - cut] if cut < 8 else packed)
    source = SourceConfig(kind="jsonl", path=path, name="web")
    found = [document.text for document in DocumentReader(source).read(Problems("skip"))]
    typed = [line["text"] for line in lines if isinstance(line, dict) and isinstance(line.get("text"), str)]
    typed = [text for text in typed if encodable(text) and not text.isspace() and text not in ("", LONG)]
    is_json = not any(isinstance(line, bytes) or (plain and not encodable(dumped(line, False))) for line in lines)
    if is_json and (cut == 0 or cut >= 8):
        assert found == typed
    with contextlib.suppress(DataError):
        list(DocumentReader(source).read(Problems("fail")))
    path.unlink()


TYPES = st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])


@fuzz(200)
@given(
    texts=st.lists(st.one_of(st.none(), st.text().filter(encodable)), max_size=8),
    kind=TYPES, damage=st.one_of(st.none(), st.tuples(st.integers(0, 5000), st.integers(1, 255))),
    form=st.sampled_from(["parquet", "file", "stream"]), codec=st.sampled_from(["snappy", "zstd", "gzip", "none"]),
)  # fmt: skip
def test_parquet_and_arrow(
    place: Path, texts: list[str | None], kind: pa.DataType, damage: tuple[int, int] | None, form: str, codec: str
) -> None:
    table = pa.table({"text": pa.array(texts, kind)})
    path = place / ("a.parquet" if form == "parquet" else "a.arrow")
    if form == "parquet":
        pq.write_table(table, path, row_group_size=3, compression=codec)
    else:
        with (pa.ipc.new_file if form == "file" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table)
    if damage is not None:
        raw = bytearray(path.read_bytes())
        raw[damage[0] % len(raw)] ^= damage[1]
        path.write_bytes(raw)
    source = SourceConfig(kind="parquet" if form == "parquet" else "arrow", path=path, name="web")
    try:
        found = [document.text for document in DocumentReader(source).read(Problems())]
    except DataError:
        assert damage is not None
    else:
        if damage is None:
            assert found == [text for text in texts if text and not text.isspace()]


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, but of a vocabulary's pieces only the first."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:12]:
        yield from places_in(inner, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = put(value[at[0]], at[1:], new)
    return copy


@pytest.fixture(scope="module")
def tokenizer_json(place: Path) -> Any:
    path = write_hf(place / "base.json", ["<|endoftext|>", "<|pad|>"])
    return json.loads(add_tokens(path, ["<s>", "</s>", "<b>"], special=False).read_text())


@fuzz(150)
@given(data=st.data())
def test_tokenizer_json(place: Path, tokenizer_json: Any, data: st.DataObject) -> None:
    content = tokenizer_json
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from(list(places_in(content))))
        new = data.draw(st.one_of(SCALARS, VALUES, st.sampled_from(["<s>", "</s>", "<|endoftext|>", True, 0, 295])))
        content = put(content, at, new)
    path = place / "tokenizer.json"
    path.write_text(dumped(content))
    try:
        found = load_tokenizer(path)
        ids = found.encode("a <s>word</s> <|endoftext|> \u0378 b")
    except DataError as error:
        assert "json" in str(error)
        return
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    assert {found.piece(found.bos_id), found.piece(found.eos_id)} <= special
    assert not {found.bos_id, found.eos_id} & set(ids)
    assert isinstance(found.decode([*ids, found.vocab_size + 3, -1]), str)


KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_size",
    "rms_norm_eps": "norm_eps", "rope_theta": "rope_theta", "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "init_std", "head_dim": "head_dim",
}  # fmt: skip
OTHERS = ["rope_scaling", "rope_parameters", "hidden_act", "attention_bias", "mlp_bias", "quantization_config"]
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["llama3", "default", "yarn", None, 3])},
    optional={
        "factor": SCALARS, "low_freq_factor": st.sampled_from([1, 1.0, "1"]), "high_freq_factor": SCALARS,
        "original_max_position_embeddings": st.one_of(st.just(64), SCALARS), "rope_theta": SCALARS,
    },
)  # fmt: skip


def import_folder(folder: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    named = mock.patch.object(sys, "argv", ["import_hf.py", str(folder)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), named:
        code = import_hf.main()
    return code, out.getvalue(), err.getvalue()


@fuzz(150)
@given(data=st.data())
def test_config_json_of_llama_folders(place: Path, data: st.DataObject) -> None:
    folder = place / "llama"
    base = to_llama(tiny(NONE), 64, "float32")
    if not folder.exists():
        save(folder, tiny(NONE))
    content = dict(base)
    for key in data.draw(
        st.lists(st.sampled_from([*KEYS, *OTHERS, "max_position_embeddings"]), min_size=1, max_size=3)
    ):
        content[key] = data.draw(
            ROPE if key.startswith("rope_s") else st.one_of(st.sampled_from([1, 2, 64, 0.5]), VALUES)
        )
    (folder / "config.json").write_text(dumped(content))
    code, out, err = import_folder(folder)
    assert code in (0, 2) and (bool(out), bool(err)) == (code == 0, code == 2), err
    if code == 0:
        section = yaml.safe_load(out)["model"]
        for theirs, ours in KEYS.items():
            if content.get(theirs) is not None and ours in section and theirs != "rope_theta":
                assert float(section[ours]) == float(content[theirs])


QUESTIONS = st.lists(
    st.fixed_dictionaries(
        {"question": st.one_of(st.text(), VALUES), "passage": st.one_of(st.text(), SCALARS)},
        optional={
            "answers": st.one_of(
                VALUES, st.lists(st.text(min_size=1), min_size=1), st.text(),
                st.fixed_dictionaries({"text": st.one_of(st.text(), st.lists(st.text(), max_size=2))}),
            ),
        },
    ), min_size=1, max_size=3,
)  # fmt: skip


@fuzz(150)
@given(records=QUESTIONS)
def test_questions(place: Path, records: list[dict[str, Any]]) -> None:
    path = place / "q.jsonl"
    path.write_text("".join(dumped(record) + "\n" for record in records))
    try:
        found = load_questions(path)
    except DataError as error:
        assert "q.jsonl:" in str(error)
        return
    for question, record in zip(found, records, strict=True):
        answers = record["answers"]
        answers = answers["text"] if isinstance(answers, dict) else answers
        assert question.answers == (tuple(answers) if isinstance(answers, list) else (answers,))
        assert (question.question, question.passage) == (record["question"], record["passage"])


@fuzz(12)
@given(lines=LINES, on_error=st.sampled_from(["fail", "skip"]), workers=st.just(1))
def test_the_whole_preparation(place: Path, lines: list[Any], on_error: str, workers: int) -> None:
    folder = place / "whole"
    (folder / "in").mkdir(parents=True, exist_ok=True)
    raw = b"\n".join(line if isinstance(line, bytes) else dumped(line).encode() for line in lines)
    (folder / "in" / "a.jsonl").write_bytes(raw + b'\n{"text": "one that is always there"}\n')
    arguments = [*write_run(folder, folder / "in")[2:], f"data.prepare.on_error={on_error}"]
    arguments += [f"data.prepare.tokenizer={{path: {tokenizer_of(place)}}}", "data.prepare.valid_fraction=0"]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = prepare_data.main(arguments)
    assert code in (0, 2) and "Traceback" not in err.getvalue()
    assert (folder / "data").exists() == (code == 0) and (code == 0 or on_error == "fail")
    for path in (folder / "data").glob("*"):
        path.unlink()
    if code == 0:
        (folder / "data").rmdir()
