"""Metrics that a tracking server did not take: kept in the run's folder as JSON lines until it does."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger("memtrain.tracking")

SPOOL_FILE = "tracking-spool.jsonl"


@dataclass(frozen=True)
class Point:
    """One value of one metric; timestamp in milliseconds."""

    key: str
    value: float
    timestamp: int
    step: int


class Spool:
    """`tracking-spool.jsonl` of a run; it is there only while something waits in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = self._read()

    def _read(self) -> list[Point]:
        """What an earlier life left; a line torn by a kill is left out."""
        found = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    found.append(Point(**json.loads(line)))
                except (ValueError, TypeError):
                    continue
        return found

    def keep(self, points: Sequence[Point]) -> None:
        """Add `points`, in memory and on disk."""
        self.waiting += points
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(point)) + "\n" for point in points)
        except OSError as error:
            log.warning("%s cannot be written (%s); what waits is lost if this process ends", self.path, error)

    def clear(self) -> None:
        """All of it was sent."""
        self.waiting = []
        self.path.unlink(missing_ok=True)
