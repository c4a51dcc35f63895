"""One process of a run: find out who it is, refuse what cannot work, then train."""

import contextlib
import logging
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from training.config import RunConfig
from training.distributed.devices import is_busy, keep_freed_memory, keep_imports
from training.distributed.ranks import RankInfo
from training.distributed.topology import Topology, broadcast, initialize
from training.errors import EXIT_FINISHED, EXIT_INTERRUPTED, ConfigError, RankError, TrainingError
from training.faults.signals import StopSignal
from training.faults.watchdog import EXIT_HANGING, Watchdog
from training.logs import quiet_libraries, setup_logging
from training.monitoring.run_lock import RunLock, refuse_living_owner
from training.planning import lines_at_start
from training.preflight import check
from training.references import explained, with_bos
from training.reporter import open_folder, start_tracker
from training.tracking import Tracker
from training.tracking.facts import End, write_end

if TYPE_CHECKING:
    from training.engine import Engine

log = logging.getLogger("memtrain")

LAST_WORD = 1.0  # seconds


def run(config: RunConfig, local_rank: int | None = None) -> int:
    """Run or continue `config`; the exit code.  Raises one of `BAD_INPUT` before anything is written."""
    info = RankInfo.discover(local_rank)
    config = with_bos(config)
    check(config, info)
    if is_finished(config):
        if info.rank == 0:
            folder = config.run.folder
            print(f"{folder} is finished: {config.total_steps} steps, {config.total_tokens:,} tokens.")
            print(f"To start anew choose another run.name=NAME, or delete {folder}")
        return EXIT_FINISHED
    torch.manual_seed(config.run.seed)
    topology = _meet_others(config, info)
    if topology.device.type == "cpu":
        keep_freed_memory()
    quiet_libraries()
    with StopSignal(speaks=info.rank == 0) as signal:
        lock = None
        try:
            lock, tracker = _take_run(config, info)
            if lock is not None:
                signal.at_once = partial(_end_at_once, config)
            setup_logging(config.run.folder, info.rank)
            return _train(config, topology, lock, tracker, signal)
        finally:
            if lock is not None:
                lock.release()
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet_others(config: RunConfig, info: RankInfo) -> Topology:
    """Start torch.distributed; where another start of this run has the port, that is what is said."""
    try:
        return initialize(config, info)
    except ConfigError:
        if info.rank == 0:
            refuse_living_owner(config.run.folder)
        raise


def _train(
    config: RunConfig, topology: Topology, lock: RunLock | None, tracker: Tracker | None, signal: StopSignal
) -> int:
    """Watched by a thread; what a library raises becomes a `TrainingError` that says what to do."""
    from training.engine.cpu_products import choose_cpu_products
    from training.faults.postmortem import is_lost_peer
    from training.trainer import Trainer

    keep_imports()
    rank = topology.info.rank

    def ended(end: End, first: bool = True) -> None:
        """Where the trainer has not come so far as to say it."""
        if lock and lock.lost:
            return
        with contextlib.suppress(OSError):  # a full disk, which hides nothing: why the run ends is printed
            write_end(config.run.folder, end, first=first)
        if tracker:
            tracker.close("FAILED")

    def hangs(message: str) -> None:
        ended(End("FAILED", message, EXIT_HANGING))

    world, seconds = topology.info.world_size, config.faults.hang_seconds
    watchdog = Watchdog(config.run.folder, rank, world, seconds, hangs, lambda: is_busy(topology.device))
    trainer = None
    try:
        products = choose_cpu_products(config, topology)
        trainer = Trainer(config, topology, lock, tracker, signal, watchdog)
        name = torch.cuda.get_device_name(topology.device) if topology.device.type == "cuda" else "CPU"
        said = [products] if products else []
        for line in [*explained(config), *lines_at_start(config, topology.info.world_size, name), *said]:
            trainer.reporter.note(line)
        code = trainer.run()
        dist.barrier()  # the launcher ends all ranks once one has left with a code, and rank 0 closes MLflow last
    except Exception as error:
        log.info("rank %d ends", rank, exc_info=True)
        if is_lost_peer(error) and rank > 0:
            time.sleep(LAST_WORD)  # the rank that was lost, or rank 0, says more where it still can
        ended(End.of(error, trainer.step if trainer else None), first=rank == 0 or is_lost_peer(error))
        if explanation := _explained_failure(error, config, topology, trainer.engine if trainer else None, watchdog):
            raise explanation from error
        raise
    watchdog.close()  # only here: a failing rank that cannot end is ended by it
    return code


def _explained_failure(
    error: Exception, config: RunConfig, topology: Topology, engine: "Engine | None", watchdog: Watchdog
) -> TrainingError | None:
    """What to do about an error that a library raised; None where it says so itself."""
    from training.faults.postmortem import full_disk, is_full_disk, is_lost_peer, is_out_of_memory, out_of_memory

    rank = topology.info.rank
    if is_out_of_memory(error):
        return RankError(f"rank {rank}: {out_of_memory(error, config, engine, topology)}")
    if is_full_disk(error):
        return RankError(f"rank {rank}: {full_disk(error, config)}")
    if is_lost_peer(error):
        watchdog.let_speak()
        reason = " ".join(str(error).split())[:200]
        return TrainingError(
            f"rank {rank} lost another rank ({reason}); log/rank-*.log of {config.run.folder} say which ended and "
            "why. Run the same command again to continue from the last checkpoint"
        )
    return None


def _take_run(config: RunConfig, info: RankInfo) -> tuple[RunLock | None, Tracker | None]:
    """Rank 0 becomes the run's owner, opens the MLflow run and then the run's folder.

    Every rank learns whether that failed, and raises `ConfigError`.  Collective.
    """
    lock, tracker, problem, folder = None, None, "", config.run.folder
    if info.rank == 0:
        try:
            lock = RunLock.take(folder, say=lambda text: print(text, file=sys.stderr, flush=True))
            tracker, start = start_tracker(config, info.world_size, lock)
            open_folder(config, tracker, start)
        except ConfigError as error:
            problem = str(error)
        except OSError as error:
            problem = f"run.output_dir: {folder} cannot be written ({error}); choose another run.output_dir"
        if problem and lock:
            lock.release() if (folder / "config.yaml").exists() else lock.discard()
    if problem := broadcast(problem):
        raise ConfigError(problem)
    return lock, tracker


def _end_at_once(config: RunConfig) -> None:
    """Say how the run ends, before a second Ctrl-C ends its owner."""
    write_end(config.run.folder, End("KILLED", "interrupted twice, not saved", EXIT_INTERRUPTED, signal="SIGINT"))


def is_finished(config: RunConfig) -> bool:
    """Whether the run's latest checkpoint is its last step."""
    from training.checkpoint.folder import latest_checkpoint, read_run_state

    latest = latest_checkpoint(config.run.folder / "checkpoints")
    return latest is not None and read_run_state(latest).step >= config.total_steps
