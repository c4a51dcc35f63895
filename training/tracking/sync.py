"""Sends what a run's MLflow store lacks, after training: the outbox, all of `metrics.jsonl`, files, the end."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import write_text
from training.checkpoint.manifest import latest_checkpoint, step_of
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.logs import without_secret
from training.monitoring.run_lock import RunLock
from training.monitoring.status import heartbeats
from training.tracking import facts
from training.tracking.delivery import Delivery, Opening, recorded_points
from training.tracking.outbox import OUTBOX_FILE, Outbox
from training.tracking.store import (
    MAX_BATCH,
    PATIENT,
    SILENT,
    AwayError,
    MissingError,
    Point,
    RefusedError,
    Store,
    environment,
    now_ms,
)


@dataclass(frozen=True)
class Synced:
    """The result of a sync."""

    run_id: str
    uri: str  # without a password
    created: bool  # the run was not in MLflow before
    entries: int  # entries of the outbox that were sent
    values: int  # values of metrics.jsonl that were sent
    status: str  # of the MLflow run
    refused: int  # calls that the store refused


def sync(run_folder: Path, uri: str | None = None, extra: tuple[Path, ...] = ()) -> Synced:
    """Send everything about a run that is not being trained to its MLflow store.

    Args:
        run_folder: a run's folder; a run that was never tracked becomes a new MLflow run.
        uri: the store's address, when it differs from the run's own or has a password.
        extra: further files to keep with the run, such as a report.

    Raises:
        ConfigError: it is not a run's folder, the run is being trained, or the store is unreachable or lacks the run.
    """
    config = _config_of(run_folder)
    if alive := [beat for beat in heartbeats(run_folder) if beat.alive]:
        raise ConfigError(f"{run_folder}: rank {alive[0].beat.rank} is training, and the run sends its records itself")
    lock = RunLock.take(run_folder)
    try:
        return _send_owned(run_folder, config, uri, extra)
    finally:
        lock.release()


def _send_owned(run_folder: Path, config: RunConfig, uri: str | None, extra: tuple[Path, ...]) -> Synced:
    if missing := next((path for path in extra if not path.exists()), None):
        raise ConfigError(f"--artifact: {missing} does not exist")
    tracking = config.tracking if uri is None else config.tracking.model_copy(update={"uri": uri})
    address = tracking.address(run_folder.parent)
    try:
        with environment(PATIENT, keep=True), environment(SILENT):
            return _send(run_folder, config, address, extra)
    except MissingError as error:
        raise ConfigError(
            f"{run_folder}: {without_secret(address)} has no run {facts.read_run_id(run_folder)} ({error}); pass the "
            f"store it is in as --uri, or delete {run_folder / facts.RUN_ID_FILE} to make a new one"
        ) from None
    except (AwayError, RefusedError) as error:
        raise ConfigError(f"{run_folder}: cannot reach {without_secret(address)}: {error}") from None


def _config_of(run_folder: Path) -> RunConfig:
    path = run_folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_folder}: is not a run's folder, it has no config.yaml; pass one such as runs/NAME")
    return load_config(path)


def _send(run_folder: Path, config: RunConfig, address: str, extra: tuple[Path, ...]) -> Synced:
    delivery = Delivery(Store(address), run_folder, facts.read_run_id(run_folder))
    created = not delivery.run_id
    if created:
        write_text(run_folder / facts.RUN_ID_FILE, delivery.open(_opening(run_folder, config, address)) + "\n")
    known = delivery.store.look(delivery.run_id)
    delivery.configuration(known, config.model_dump(mode="json"))
    outbox = Outbox(run_folder / OUTBOX_FILE)
    entries = outbox.peek()
    outbox.without("status")
    delivery.deliver(outbox.peek())
    values = _send_missing(delivery, config.tracking.log_every_steps)
    for path in (*facts.artifacts_of(run_folder), *extra):
        delivery.store.artifact(delivery.run_id, path, None)
    status = _true_status(run_folder, config, known.status)
    if status != known.status:
        delivery.store.end(delivery.run_id, status, now_ms())  # type: ignore[arg-type]
    outbox.done(len(outbox))
    outbox.close()
    return Synced(delivery.run_id, delivery.store.uri, created, len(entries), values, status, delivery.refused)


def _opening(run_folder: Path, config: RunConfig, address: str) -> Opening:
    remote = address.startswith(("http://", "https://"))
    artifacts = None if remote else (run_folder.parent.resolve() / "mlartifacts").as_uri()
    tags = facts.start_tags(facts.read_starts(run_folder) or [facts.this_start(0, 1)]) | {"sent": "afterwards"}
    params = config.model_dump(mode="json")
    return Opening(config.tracking.experiment, artifacts, run_folder.name, None, params, tags)


def _send_missing(delivery: Delivery, every: int) -> int:
    """Send the values of `metrics.jsonl` whose steps the store lacks; return how many."""
    by_name: dict[str, list[Point]] = defaultdict(list)
    for point in recorded_points(delivery.folder, every):
        by_name[point.key].append(point)
    sent = 0
    for name, points in by_name.items():
        there = delivery.store.steps(delivery.run_id, name)
        missing = [point for point in points if point.step not in there]
        for start in range(0, len(missing), MAX_BATCH):
            delivery.store.points(delivery.run_id, missing[start : start + MAX_BATCH])
        sent += len(missing)
    return sent


def _true_status(run_folder: Path, config: RunConfig, stored: str) -> str:
    """Return the run's status: FINISHED when its last checkpoint is at the last step, else what its last attempt wrote.

    An attempt that wrote nothing was killed.
    """
    latest = latest_checkpoint(run_folder / "checkpoints")
    if latest is not None and step_of(latest) >= config.total_steps:
        return "FINISHED"
    said, _ = facts.read_end(run_folder)
    return said or ("KILLED" if stored == "RUNNING" else stored)
