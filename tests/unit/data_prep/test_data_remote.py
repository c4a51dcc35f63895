"""Inputs and prepared folders in S3: a real local server (moto's), read through s3fs and the bounded cache."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data_prep import CacheConfig, DataConfig, DataError, PrepareConfig, PreparedFolder, TokenStream, prepare
from data_prep.sources.remote import RemoteCache
from tests.unit.data_prep.data_folder import write_folder

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

QUIET = Console(quiet=True)
SIZES = {"web": [500] * 40, "books": [300] * 20}
LENGTH = 16


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    service.start()
    host, port = service.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("corpus")
        yield system
        s3fs.S3FileSystem.clear_instance_cache()
    service.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "data"
    path.mkdir()
    return write_folder(path, SIZES)


@pytest.fixture
def url(s3: Any, folder: Path, request: pytest.FixtureRequest) -> str:
    place = f"corpus/{request.node.name}"
    s3.put(f"{folder}/", f"{place}/", recursive=True)
    return f"s3://{place}"


def test_remote_folder_streams_as_the_local_one(url: str, folder: Path, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path / "cache")
    remote = TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache)
    local = TokenStream(folder, sequence_length=LENGTH, seed=0)
    assert remote.fingerprint == local.fingerprint
    indices = range(len(local))
    assert np.array_equal(remote.batch(indices).tokens, local.batch(indices).tokens)
    assert np.array_equal(remote.batch(indices).loss_mask, local.batch(indices).loss_mask)
    PreparedFolder(url, cache).verify()


def test_cache_stays_within_its_bound(url: str, folder: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in folder.iterdir())
    cache = CacheConfig(folder=tmp_path / "cache", max_bytes=3 * largest, read_ahead=1)
    assert len(list(folder.glob("*.arrow"))) > 8
    settings: dict[str, Any] = {"sequence_length": LENGTH, "seed": 0, "shuffle_shards": 2}
    remote, local = TokenStream(url, cache=cache, **settings), TokenStream(folder, **settings)
    for first in range(0, len(local), 160):
        indices = range(first, first + 2)
        assert np.array_equal(remote.batch(indices).tokens, local.batch(indices).tokens)
        # A copy that is being made, and its temporary name, come on top.
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 5 * largest
    assert len(remote._raw) <= 4


def test_damage_behind_a_url_is_named(s3: Any, url: str, folder: Path, tmp_path: Path) -> None:
    name = "train-web-00001.arrow"
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    s3.pipe_file(f"{url}/{name}", bytes(content))
    cache = CacheConfig(folder=tmp_path / "cache")
    stream = TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache)
    with pytest.raises(DataError, match=rf"{url}/{name}: .*shard is damaged"):
        stream.batch(range(len(stream)))
    s3.pipe_file(f"{url}/{name}", bytes(content[:-1]))
    with pytest.raises(DataError, match=rf"{name}: shard has \d+ bytes"):
        TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache)
    s3.rm_file(f"{url}/{name}")
    s3.invalidate_cache()
    with pytest.raises(DataError, match=rf"{name}: shard is missing"):
        TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache)


def test_damaged_copy_is_fetched_again(url: str, folder: Path, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path / "cache")
    TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache).batch(range(2000))
    for path in (tmp_path / "cache").glob("*.arrow"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache)
    local = TokenStream(folder, sequence_length=LENGTH, seed=0)
    assert np.array_equal(again.batch(range(500)).tokens, local.batch(range(500)).tokens)


def test_remote_inputs_give_what_local_ones_give(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        lines = [json.dumps({"text": f"document {n} of file {number} " * 20}) for n in range(50)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("\n".join(lines))
    s3.put(f"{tmp_path}/in/", "corpus/in/", recursive=True)
    written = {}
    for name, place in {
        "local": str(tmp_path / "in"),
        "remote": "s3://corpus/in",
        "glob": "s3://corpus/in/*.jsonl",
    }.items():
        config = PrepareConfig.model_validate(
            {
                "sources": [{"kind": "jsonl", "path": place, "name": "web"}],
                "tokenizer": {"vocab_size": 300},
                "workers": 1,
                "valid_fraction": 0,
            }
        )
        prepare(config, tmp_path / name, QUIET, CacheConfig(folder=tmp_path / "cache"))
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.arrow")}
    assert written["local"] == written["remote"] == written["glob"]


def test_what_is_not_there_is_said(s3: Any, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path / "cache")
    with pytest.raises(DataError, match=r"s3://corpus/nowhere/manifest\.json: cannot be read"):
        TokenStream("s3://corpus/nowhere", sequence_length=LENGTH, seed=0, cache=cache)
    with pytest.raises(DataError, match=r"s3://corpus/nowhere/x: cannot be fetched"):
        RemoteCache(cache).fetch("s3://corpus/nowhere/x")
    config = PrepareConfig.model_validate({"sources": [{"kind": "jsonl", "path": "s3://corpus/none/"}]})
    with pytest.raises(DataError, match=r"s3://corpus/none/ holds no \*\.jsonl"):
        prepare(config, tmp_path / "data", QUIET, cache)
    with pytest.raises(DataError, match="is a URL; prepare a local folder"):
        prepare(config, "s3://corpus/data", QUIET, cache)


def test_urls_survive_the_configuration(tmp_path: Path) -> None:
    data = DataConfig.model_validate({"path": "s3://corpus/data", "sequence_length": 8})
    assert data.path == "s3://corpus/data"
    assert DataConfig.model_validate(json.loads(data.model_dump_json())) == data
    assert DataConfig.model_validate({"path": "data/x", "sequence_length": 8}).path == Path("data/x")
    source = PrepareConfig.model_validate({"sources": [{"kind": "parquet", "path": "hf://datasets/a/b/c/*.parquet"}]})
    assert source.sources[0].label == "c"


def test_two_processes_share_a_cache(url: str, folder: Path, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path / "cache")
    one, two = (TokenStream(url, sequence_length=LENGTH, seed=0, cache=cache) for _ in range(2))
    expected = one.batch(range(100)).tokens
    shutil.rmtree(tmp_path / "cache")  # the other made room, and more
    os.mkdir(tmp_path / "cache")  # noqa: PTH102
    assert np.array_equal(one.batch(range(100)).tokens, expected)
    assert np.array_equal(two.batch(range(100)).tokens, expected)
