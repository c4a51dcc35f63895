"""Records that have not been sent to the tracking store yet, as JSON lines in the run's folder.

An entry is written to the file before it is sent, so that neither a dead server nor a kill loses it. Entries:
`{"step", "time", "metrics": {name: value}}`, `{"tags": {name: text}}`, `{"artifact": path, "folder"}` and
`{"status", "time"}`; times in milliseconds since the epoch, paths relative to the run's folder.
"""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from training.monitoring.run_lock import LostLockError

log = logging.getLogger("memtrain.tracking")

OUTBOX_FILE = "tracking-spool.jsonl"
KINDS = ("metrics", "tags", "artifact", "status")
Entry = dict[str, Any]


class Outbox:
    """`tracking-spool.jsonl` of a run: a queue that one thread fills and another empties."""

    def __init__(self, path: Path, confirm: Callable[[], None] = lambda: None) -> None:
        """Read the entries that an earlier attempt left in `path`; a line torn by a kill is left out.

        confirm: raises `LostLockError` when another process owns the run's folder; the file is then not written.
        """
        self.path, self._confirm = path, confirm
        self._changed = threading.Condition()
        self._entries = read_entries(path)
        self._file: IO[bytes] | None = None
        self._torn = path.exists() and not path.read_bytes().endswith(b"\n")  # the next entry needs a newline before it
        self._complained = False

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Append `entry` in memory and on disk."""
        with self._changed:
            self._entries.append(entry)
            self._on_disk(lambda: self._append(_line(entry)))
            self._changed.notify_all()

    def peek(self) -> list[Entry]:
        """Return all entries, oldest first."""
        with self._changed:
            return list(self._entries)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until there is an entry, for at most `seconds` (None: without limit)."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._entries), seconds)

    def done(self, count: int) -> None:
        """Remove the oldest `count` entries, which the store has."""
        with self._changed:
            del self._entries[:count]
            self._on_disk(self._rewrite)

    def without(self, kind: str) -> None:
        """Remove all entries of `kind`, such as the status of an earlier attempt."""
        with self._changed:
            kept = [entry for entry in self._entries if kind not in entry]
            if len(kept) < len(self._entries):
                self._entries = kept
                self._on_disk(self._rewrite)

    def close(self) -> None:
        """Close the file, and delete it when it has no entries."""
        with self._changed:
            if self._file is not None:
                self._file.close()
                self._file = None
            if not self._entries:
                self._on_disk(lambda: self.path.unlink(missing_ok=True))

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        whole = b"\n" + line if self._torn else line
        self._torn = True
        self._torn = self._file.write(whole) < len(whole)  # a disk that is filling up may take only a part

    def _rewrite(self) -> None:
        """Replace the file by one with the present entries; a kill leaves either the old or the new file.

        It does not wait for the disk, as `data_prep.files.replacing` would, because `put` waits for this lock.
        """
        aside = self.path.with_name(f"{self.path.name}.tmp")
        aside.write_bytes(b"".join(_line(entry) for entry in self._entries))
        aside.replace(self.path)
        self._torn = False
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_disk(self, write: Callable[[], object]) -> None:
        """Call `write`; a full disk causes one warning, and the entries stay in memory."""
        try:
            self._confirm()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write()
        except LostLockError:
            return
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "%s cannot be written (%s); entries not sent are lost when this process ends", self.path, error
                )


def read_entries(path: Path) -> list[Entry]:
    """Return the entries in `path`, without incomplete lines."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if _is_entry(entry):
            found.append(entry)
    return found


def _is_entry(entry: Any) -> bool:
    """Return whether a parsed line is a valid entry; a damaged one would end the sending thread."""
    match entry:
        case {"metrics": dict(values), "step": int(), "time": int()}:
            whole = all(isinstance(value, int | float) for value in values.values())
        case {"tags": dict(tags)}:
            whole = all(isinstance(text, str) for text in tags.values())
        case {"artifact": str()} | {"status": str(), "time": int()}:
            whole = True
        case _:
            whole = False
    return whole and sum(kind in entry for kind in KINDS) == 1


def _line(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"
