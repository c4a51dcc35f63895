"""Data preparation as an array with a merge that waits for all of it."""

import json
import os
from pathlib import Path

import yaml

from tests.e2e.commands import tree
from tests.slurm.conftest import Site
from tests.slurm.sandbox import until

PARTS = 3


def _corpus(folder: Path) -> Path:
    """Three files of JSON lines."""
    folder.mkdir()
    text = "the memory of a model reads what it wrote before it reads what was written after"
    words = text.split()
    for part in range(PARTS):
        lines = [json.dumps({"text": " ".join(words[i % 9 :] + words + [f"w{part}{i}"])}) for i in range(300)]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    """As a disk does it: other bytes, the same size and time, so that the plan still holds."""
    before, content = path.stat(), path.read_bytes()
    assert len(old) == len(new) and old in content
    path.write_bytes(content.replace(old, new, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_one_failing_part_stops_the_merge_and_is_all_that_is_repeated(site: Site, prepared_data: Path) -> None:
    corpus = _corpus(site.folder / "corpus")
    _overwrite(corpus / "part-1.jsonl", b'"}', b'"!')
    config = yaml.safe_load((site.folder / "run.yaml").read_text())
    config["data"]["path"] = "made"
    config["data"]["prepare"] = {
        "sources": [{"kind": "jsonl", "path": f"{corpus}/*.jsonl", "name": "small"}],
        "tokenizer": {"path": str(prepared_data / "tokenizer.model")},
        "valid_fraction": 0.1,
        "task_bytes": 1000,
    }
    (site.folder / "run.yaml.data").write_text(yaml.safe_dump(config))
    prepare = ("--prepare-data", str(PARTS))

    plan, array, merge = site.submitted("data", "--config", "run.yaml.data", *prepare)
    assert site.end(plan) == "COMPLETED"
    until(lambda: site.box.job(merge).get("JobState") == "CANCELLED", 120, "the merge is cancelled")
    states = {part: site.box.job(f"{array}_{part}")["JobState"] for part in range(PARTS)}
    assert states == {0: "COMPLETED", 1: "FAILED", 2: "COMPLETED"}
    assert not (site.folder / "made").exists()
    output = (site.folder / "made.slurm").glob(f"prepare-*-{array}_1.out")
    assert "part-1.jsonl" in next(output).read_text()
    finished = tree(site.folder / "made.work" / "tasks")

    _overwrite(corpus / "part-1.jsonl", b'"!', b'"}')
    second, merge = site.submitted("data", "--config", "run.yaml.data", *prepare)
    assert site.end(merge) == "COMPLETED"
    assert site.box.job(f"{second}_1")["JobState"] == "COMPLETED"
    assert not site.box.job(f"{second}_0") and not site.box.job(f"{second}_2")  # never submitted
    assert finished
    manifest = json.loads((site.folder / "made" / "manifest.json").read_text())
    assert sum(shard["documents"] for shard in manifest["shards"]) > 800
    assert "already prepared" in site.submit("data", "--config", "run.yaml.data", *prepare).out
