"""What waits for the tracking store survives kills and disks that fill up."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from training.tracking import facts
from training.tracking.outbox import Outbox, read_entries

FIRST, SECOND = {"tags": {"a": "1"}}, {"tags": {"b": "2"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "tracking-spool.jsonl"


def test_an_entry_after_a_torn_line_is_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"tags": {"a": "1"}}\n{"tags": {"to')
    Outbox(path).put(SECOND)
    assert read_entries(path) == [FIRST, SECOND]


def test_an_entry_after_one_that_a_full_disk_took_half_of_is_kept(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put(FIRST)

    class Filling:
        """Takes five bytes of a line."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            return int(self.file.write(content[:5]))

    whole = outbox._file
    outbox._file = Filling(whole)  # type: ignore[assignment]
    outbox.put({"tags": {"half": "of it"}})
    outbox._file = whole
    outbox.put(SECOND)
    assert read_entries(path) == [FIRST, SECOND]
    outbox.done(1)
    assert [entry["tags"] for entry in read_entries(path)] == [{"half": "of it"}, {"b": "2"}]


def test_a_kill_while_what_arrived_is_taken_out_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(path)
    outbox.put(FIRST)
    outbox.put(SECOND)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.tracking.outbox._line", killed)
        with pytest.raises(KeyboardInterrupt):
            outbox.done(1)
    assert read_entries(path) == [FIRST, SECOND]


def test_a_disk_without_room_for_what_is_left_keeps_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outbox = Outbox(path)
    outbox.put(FIRST)
    outbox.put(SECOND)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        outbox.done(1)
    assert outbox.peek() == [SECOND]
    assert read_entries(path) == [FIRST, SECOND]  # the first is sent again, which changes nothing
    outbox.done(1)
    outbox.close()
    assert not path.exists()


def test_starts_that_were_damaged_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_bytes(b'{"after_step": 0}\n\xff\xfe\n{"after_step": 4}\n')
    assert [start["after_step"] for start in facts.read_starts(tmp_path)] == [0, 4]


@pytest.mark.parametrize("line", [
    '{"stdp": 3, "time": 1, "metrics": {"loss": 2.0}}',
    '{"step": 3, "time": 1, "metrics": {"loss": "2.0"}}',
    '{"step": 3, "time": 1, "metrics": 5}',
    '{"tags": {"a": 1}}',
    '{"status": "KILLED", "timd": 1}',
    '{"artifact": null, "folder": null}',
    '[1]',
])  # fmt: skip
def test_damaged_entries_are_left_out(path: Path, line: str) -> None:
    """One that cannot be sent would end the thread that sends the others."""
    path.parent.mkdir()
    path.write_text(f'{{"tags": {{"a": "1"}}}}\n{line}\n')
    assert read_entries(path) == [FIRST]
