"""Sends a run's entries to its store, without the values that earlier attempts of the run have sent."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.logs import without_secrets
from training.monitoring.records import read_metrics
from training.tracking.names import DISCARDED, metrics_of, safe_key
from training.tracking.outbox import Entry
from training.tracking.store import MAX_BATCH, MAX_TAG, Known, MissingError, Point, RefusedError, Store, now_ms

log = logging.getLogger("memtrain.tracking")

MAX_VALUE = 500  # characters of a param
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Opening:
    """What a store is given when a run starts or continues."""

    experiment: str
    artifacts: str | None
    name: str
    run_id: str | None  # the run to continue
    params: Mapping[str, Any]  # the resolved configuration, nested
    tags: Mapping[str, str]


class Delivery:
    """Sends the entries of one run's folder to its run in a store.

    Methods raise `AwayError` when the store cannot be reached; calls that it refuses are counted.
    """

    def __init__(self, store: Store, folder: Path, run_id: str) -> None:
        self.store, self.folder, self.run_id = store, folder, run_id
        self.last_step: dict[str, int] = {}  # last step of every metric in the store; steps are sent in ascending order
        self.refused = 0

    def open(self, opening: Opening, *, create: bool = True) -> str:
        """Continue the run `opening.run_id`, or create one; return its id.

        A run that the store does not have any more is created again, with a warning; with `create` false it raises
        `MissingError`. The configuration is logged once as params. Changes by a later attempt become the tag
        `config_changed` and an artifact, because MLflow does not let a param change.
        """
        known, continues = self._find(opening.run_id, create)
        if known is None:
            run_id = self.store.create(opening.experiment, opening.artifacts, opening.name, continues)
            known = self.store.look(run_id)
        elif known.status != "RUNNING":
            self.store.reopen(known.run_id)
        self.run_id, self.last_step = known.run_id, dict(known.last_step)
        self.configuration(known, opening.params)
        self.store.tags(self.run_id, opening.tags)
        return self.run_id

    def _find(self, run_id: str | None, create: bool) -> tuple[Known | None, dict[str, str]]:
        if not run_id:
            return None, {}
        try:
            return self.store.look(run_id), {}
        except MissingError:
            if not create:
                raise
            log.warning("the MLflow run %s of this run is not in the store any more; a new one continues it", run_id)
            return None, {"continues_run": run_id}

    def configuration(self, known: Known, params: Mapping[str, Any]) -> None:
        """Send the params that the store lacks, and record which of the others have changed."""
        public = without_secrets(params)
        now = dict(flatten(public))
        self.store.params(known.run_id, {key: value for key, value in now.items() if key not in known.params})
        changed = "; ".join(
            f"{key}: {known.params.get(key, 'absent')} -> {now.get(key, 'absent')}"
            for key in sorted({*known.params, *now})
            if known.params.get(key) != now.get(key)
        )
        if known.params and changed and changed[:MAX_TAG] != known.tags.get("config_changed"):
            self.store.tags(known.run_id, {"config_changed": changed})
            stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
            text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
            self.store.text(known.run_id, text, f"config_changed/{stamp}.yaml")

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Send `entries`; when it raises, send them all again."""
        self.values(
            Point(safe_key(name), value, entry["time"], entry["step"])
            for entry in entries
            if "metrics" in entry
            for name, value in entry["metrics"].items()
        )
        tags: dict[str, str] = {}
        artifacts: dict[tuple[str, str | None], None] = {}
        for entry in entries:
            tags |= entry.get("tags", {})
            if "artifact" in entry:  # a file is sent once, with its present content
                artifacts[entry["artifact"], entry.get("folder")] = None
        if tags:
            self._attempt(lambda: self.store.tags(self.run_id, tags))
        for entry in entries:
            if "status" in entry:  # before the artifacts, which may be large when little time is left
                self._attempt(lambda entry=entry: self.store.end(self.run_id, entry["status"], entry["time"]))  # type: ignore[misc]
        for path, folder in artifacts:
            self._attempt(lambda path=path, folder=folder: self.store.artifact(self.run_id, self.folder / path, folder))  # type: ignore[misc]

    def values(self, points: Iterable[Point]) -> int:
        """Send those of `points` that are later than the last step of their metric in the store; return how many."""
        sent, batch = 0, []
        last = dict(self.last_step)
        for point in points:
            if point.key == DISCARDED or point.step > last.get(point.key, -1):  # a step may be discarded several times
                last[point.key] = point.step
                batch.append(point)
            if len(batch) == MAX_BATCH:
                sent += self._send(batch)
                batch = []
        return sent + self._send(batch)

    def _send(self, batch: list[Point]) -> int:
        if not batch:
            return 0
        self._attempt(lambda: self.store.points(self.run_id, batch))
        self.last_step |= {point.key: point.step for point in batch}  # only after they have been sent
        return len(batch)

    def catch_up(self, until_step: int, every: int) -> None:
        """Send the values of `metrics.jsonl` up to `until_step` that an earlier attempt could not send."""
        self.values(point for point in recorded_points(self.folder, every) if point.step <= until_step)

    def _attempt(self, call: Any) -> None:
        """Run `call`; when the store refuses it, count that, and warn the first time."""
        try:
            call()
        except RefusedError as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("MLflow (%s) refused a call; training goes on without it: %s", self.store.uri, error)


def recorded_points(folder: Path, every: int) -> Iterator[Point]:
    """Yield the values in a run's `metrics.jsonl`, of every `every`-th step and all evaluations.

    They get the present time, because the file does not say when they were measured.
    """
    steps, evaluations = read_metrics(folder / METRICS_FILE)
    time_ms = now_ms()
    for line in (*(line for line in steps if line["step"] % every == 0), *evaluations):
        for name, value in metrics_of(line).items():
            yield Point(safe_key(name), value, time_ms, line["step"])


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a nested configuration as (`a.b.0.c`, text); a list of plain values is one leaf."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping) and value:
        items = iter(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = iter(enumerate(value))
    if items is None:
        yield safe_key(prefix), str(value)[:MAX_VALUE]
        return
    for name, item in items:
        yield from flatten(item, f"{prefix}.{name}" if prefix else str(name))
