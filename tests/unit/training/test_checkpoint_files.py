"""A checkpoint's files: damage of every kind is found, nothing outside the folder is named, no code is run."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from tests.unit.training.config_case import TINY
from training.checkpoint.loading import load_tensors
from training.checkpoint.manifest import (
    METADATA,
    STATE_FILE,
    DamagedError,
    FileEntry,
    _manifest_text,
    latest_checkpoint,
    point,
    read_manifest,
    verify,
    write_manifest,
)
from training.checkpoint.run_state import RunState, read_run_state
from training.checkpoint.safe_reader import SafeReader, read_metadata
from training.checkpoint.shards import SharePlanner, TensorShard, boxes, boxes_of_range
from training.checkpoint.tools import average
from training.checkpoint.trained_model import find_checkpoint
from training.checkpoint.writer import prune
from training.config import parse_config
from training.errors import ConfigError, TrainingError
from training.preflight import check_origin

VALUES = {"weight": torch.arange(12.0).view(3, 4), "weight/exp_avg": torch.ones(3, 4)}


def entries(folder: Path) -> dict[str, FileEntry]:
    return {path.name: FileEntry.of(path) for path in folder.iterdir() if path.name != "manifest.json"}


def make(folder: Path, step: int) -> Path:
    """A whole checkpoint without a run."""
    path = folder / f"step-{step:08d}"
    share = [TensorShard(key, value.size(), torch.Size([0, 0]), value + step) for key, value in VALUES.items()]
    dcp.save({}, storage_writer=dcp.FileSystemWriter(path), planner=SharePlanner(share), no_dist=True)
    metadata = pickle.loads((path / METADATA).read_bytes())  # written by ourselves a line ago
    metadata.storage_meta = None
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    (path / STATE_FILE).write_text("{}")
    write_manifest(path, entries(path))
    point(folder, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (10, 20):
        make(tmp_path, step)
    return tmp_path


def test_a_whole_checkpoint_is_believed_and_read(folder: Path) -> None:
    latest = latest_checkpoint(folder)
    assert latest == folder / "step-00000020"
    verify(latest)
    values = {key: torch.zeros(3, 4) for key in VALUES}
    dcp.load(values, storage_reader=SafeReader(latest), no_dist=True)
    assert all(torch.equal(values[key], VALUES[key] + 20) for key in VALUES)


def files() -> list[str]:
    return [METADATA, STATE_FILE, "manifest.json", "__0_0.distcp"]


@pytest.mark.parametrize("name", files())
def test_any_flipped_bit_is_found(folder: Path, name: str) -> None:
    chance = random.Random(20261120)
    path = folder / "step-00000020" / name
    whole = path.read_bytes()
    for _ in range(40):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match=name.removeprefix(".")):
            verify(path.parent)


@pytest.mark.parametrize("name", files())
@pytest.mark.parametrize("how", ["truncated", "missing", "empty"])
def test_a_file_that_is_not_whole_sends_back_to_the_checkpoint_before(folder: Path, name: str, how: str) -> None:
    path = folder / "step-00000020" / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if how == "truncated" else b"")
    assert latest_checkpoint(folder) == folder / "step-00000010"


def test_a_state_that_changed_is_never_used(folder: Path) -> None:
    (folder / "step-00000020" / STATE_FILE).write_text("[]")
    assert latest_checkpoint(folder) == folder / "step-00000010"


@pytest.mark.parametrize("text", ["step-00000099", "../elsewhere", "", "/etc", "step-00000010/../../x", "\udcff"])
def test_a_wrong_pointer_leads_to_the_newest_whole_one(folder: Path, text: str) -> None:
    (folder / "latest").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert latest_checkpoint(folder) == folder / "step-00000020"


def test_nothing_whole_is_an_error_that_says_what_is_wrong(folder: Path) -> None:
    for path in folder.glob("step-*"):
        (path / "__0_0.distcp").unlink()
    with pytest.raises(TrainingError, match=r"no whole checkpoint is left .*00000020.*is missing.*00000010.*copy one"):
        latest_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "", "a\0b"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(folder: Path, name: str) -> None:
    path = folder / "step-00000020"
    (path / "manifest.json").write_text(_manifest_text(entries(path) | {name: FileEntry(1, "0" * 16)}))
    with pytest.raises(DamagedError, match="plain file name inside the folder"):
        read_manifest(path)


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "step-00000020" / STATE_FILE
    shutil.move(path, tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DamagedError, match=r"state\.json: is missing"):
        verify(path.parent)


class _Evil:
    """Unpickling it creates the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


@pytest.mark.parametrize("where", ["alone", "storage_data", "planner_data"])
def test_metadata_that_would_run_code_is_refused_and_runs_nothing(folder: Path, tmp_path: Path, where: str) -> None:
    path, target = folder / "step-00000020", tmp_path / "owned"
    evil = _Evil(target)
    content = evil if where == "alone" else Metadata({}, **{where: {"x": evil}})  # type: ignore[arg-type]
    (path / METADATA).write_bytes(pickle.dumps(content))
    write_manifest(path, entries(path))  # whoever makes a checkpoint makes its manifest too
    verify(path)
    with pytest.raises(DamagedError, match="refused"):
        SafeReader(path).read_metadata()
    assert not target.exists()


def rewritten(path: Path, change: Callable[[Metadata], None]) -> None:
    metadata = read_metadata(path)
    change(metadata)
    metadata.storage_meta = None
    (path / METADATA).write_bytes(pickle.dumps(metadata))


def test_bytes_in_place_of_a_tensor_are_never_unpickled(folder: Path, tmp_path: Path) -> None:
    path, target = folder / "step-00000020", tmp_path / "owned"
    rewritten(path, lambda metadata: metadata.state_dict_metadata.update(weight=BytesStorageMetadata()))
    (path / "__0_0.distcp").write_bytes(pickle.dumps(_Evil(target)))
    with pytest.raises(DamagedError, match="refused"):
        read_metadata(path)
    with pytest.raises(dcp.CheckpointException):
        dcp.load({"weight": torch.zeros(3, 4)}, storage_reader=SafeReader(path), no_dist=True)
    assert not target.exists()


def test_tensors_that_run_code_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    path, target = folder / "step-00000020", tmp_path / "owned"
    shard = path / "__0_0.distcp"
    torch.save(_Evil(target), shard)

    def spread(metadata: Metadata) -> None:
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, shard.stat().st_size

    rewritten(path, spread)
    with pytest.raises(dcp.CheckpointException):
        dcp.load({"weight": torch.zeros(3, 4)}, storage_reader=SafeReader(path), no_dist=True)
    assert not target.exists()


@pytest.mark.parametrize("file", ["../other", "/etc/passwd"])
def test_tensors_outside_the_folder_are_refused(folder: Path, file: str) -> None:
    path = folder / "step-00000020"

    def lead_out(metadata: Metadata) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = file

    rewritten(path, lead_out)
    with pytest.raises(DamagedError, match="outside the folder"):
        read_metadata(path)


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (4, 3, 2)])
def test_boxes_cover_every_range_of_a_tensor_in_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    for start in range(whole.numel()):
        for stop in range(start + 1, whole.numel() + 1):
            found = []
            for offsets, sizes in boxes_of_range(shape, start, stop):
                part = whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
                assert part.shape == sizes
                found.append(part.flatten())
            assert torch.equal(torch.cat(found), whole.flatten()[start:stop])
            assert len(found) <= 2 * max(1, len(shape)) - 1


def test_boxes_of_a_shard_lie_where_the_shard_lies() -> None:
    (box,) = boxes("w", (2, 3), 0, torch.arange(6.0), 0, 1, 2)
    assert (box.size, box.offsets) == (torch.Size([4, 3]), torch.Size([2, 0]))
    assert torch.equal(box.values, torch.arange(6.0).view(2, 3))


def test_a_checkpoint_that_cannot_be_deleted_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stuck)
        prune(folder, 1, None)
    assert [path.name for path in folder.glob("step-*")] == ["step-00000020"]  # out of sight at once
    assert len(list(folder.glob(".step-*.trash"))) == 1
    prune(folder, 1, None)
    assert not list(folder.glob(".step-*"))


def trained(folder: Path, step: int, tokenizer: str = "one", **model: Any) -> Path:
    """A whole checkpoint with the JSON side of a run of `test_config.TINY`, its model changed."""
    path = make(folder, step)
    config = parse_config({**TINY, "model": TINY["model"] | model}).model_dump(mode="json")
    state = RunState(step, 64 * step, step, "memory", step, {}, "stream", "", config, {}, tokenizer=tokenizer)
    (path / STATE_FILE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    write_manifest(path, entries(path))
    return path


def test_the_average_of_one_run(tmp_path: Path) -> None:
    sources = [trained(tmp_path, 10), trained(tmp_path, 20), trained(tmp_path, 30, tokenizer="")]
    average(sources, tmp_path / "soup")
    found = torch.empty(3, 4)
    load_tensors({"weight": found}, tmp_path / "soup")
    assert torch.allclose(found, VALUES["weight"] + 20)
    assert read_run_state(tmp_path / "soup").step == 30


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tokenizer": "two"}, r"another tokenizer \(fingerprint two\) than .*step-00000010 \(one\)"),
        ({"rope_theta": 1e4}, r"model\.rope_theta is 10000\.0, but 500000\.0 in .*step-00000010"),
        ({"segment_length": 32}, r"model\.segment_length is 32, but 16 in"),
        ({"num_heads": 8}, r"model\.num_heads is 8, but 4 in"),
    ],
)
def test_weights_of_one_shape_that_mean_other_things_are_not_averaged(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    sources = [trained(tmp_path, 10), trained(tmp_path, 20, **other)]
    with pytest.raises(ConfigError, match=said):
        average(sources, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    with pytest.raises(ConfigError, match="average checkpoints of one"):
        average([trained(tmp_path, 30, tokenizer=""), *sources], tmp_path / "soup")


def test_a_phase_begins_from_no_checkpoint_of_another_tokenizer(tmp_path: Path) -> None:
    path = trained(tmp_path, 10)
    with pytest.raises(ConfigError, match=r"phases\.0\.init_from: .* another tokenizer \(fingerprint one\) .*\(two\)"):
        check_origin(str(path), "phases.0.init_from", parse_config(TINY), False, "two")
    check_origin(str(path), "phases.0.init_from", parse_config(TINY), False, "one")
    unknown = trained(tmp_path, 20, tokenizer="")  # from before it was recorded
    check_origin(str(unknown), "phases.0.init_from", parse_config(TINY), False, "two")


@pytest.mark.parametrize("path", ["nothere", "file"])
def test_what_is_no_checkpoint_is_named_by_the_option(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"PATH: .*{path} " + ("does not exist" if path == "nothere" else "is no")):
        find_checkpoint(tmp_path / path, "PATH")
