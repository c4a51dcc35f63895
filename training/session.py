"""One process of a run, from finding its rank and checking the configuration to training and its exit code."""

import contextlib
import logging
import os
import shlex
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from data_prep.errors import one_line
from training.config import RunConfig
from training.distributed.devices import is_busy, keep_freed_memory, keep_imports
from training.distributed.ranks import RankInfo
from training.distributed.topology import Topology, broadcast, initialize
from training.errors import EXIT_FINISHED, EXIT_INTERRUPTED, ConfigError, RankError, TrainingError
from training.faults.signals import StopSignal
from training.faults.watchdog import EXIT_HANGING, Watchdog
from training.logs import quiet_libraries, setup_logging, without_secret
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

LAST_WORD = 1.0  # seconds that a rank which lost another one waits, so that the cause is printed first


def run(config: RunConfig, local_rank: int | None = None) -> int:
    """Train the run of `config`, or continue it; return the exit code. Collective.

    Raises:
        ConfigError, DataError, ModelError: the run cannot start; nothing was written.
        TrainingError: training failed; the last whole checkpoint stays.
    """
    info = RankInfo.discover(local_rank)
    config = with_bos(config)
    if check(config, info).step >= config.total_steps:
        if info.rank == 0:
            folder = config.run.folder
            print(f"{folder} is finished: {config.total_steps} steps, {config.total_tokens:,} tokens.")
            print(f"To train again, choose another run.name=NAME or delete {folder}")
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
            log.info("rank %d of %d, process %d: %s", info.rank, info.world_size, os.getpid(), _command())
            return _train(config, topology, lock, tracker, signal)
        finally:
            if lock is not None:
                lock.release()
            if dist.is_initialized():
                dist.destroy_process_group()


def _command() -> str:
    """The command line of this process, as its launcher put it together, fit to be logged."""
    return without_secret(shlex.join([sys.executable, *sys.argv]))


def _meet_others(config: RunConfig, info: RankInfo) -> Topology:
    """Start torch.distributed. Collective.

    When the port is taken by another start of this run, the error names that start instead of the port.
    """
    try:
        return initialize(config, info)
    except ConfigError:
        if info.rank == 0:
            refuse_living_owner(config.run.folder)
        raise


def _train(
    config: RunConfig, topology: Topology, lock: RunLock | None, tracker: Tracker | None, signal: StopSignal
) -> int:
    """Train under a watchdog; return the exit code. Collective.

    Errors of libraries (out of memory, full disk, lost rank) become a `TrainingError` that says what to do.
    """
    from training.engine.cpu_products import choose_cpu_products
    from training.faults.postmortem import is_lost_peer
    from training.trainer import Trainer

    keep_imports()
    rank = topology.info.rank

    def ended(end: End, first: bool = True) -> None:
        """Record how this attempt ended, for ends that the trainer did not record itself."""
        if lock and lock.lost:
            return
        with contextlib.suppress(OSError):  # the disk may be full; the reason is printed anyway
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
        # rank 0 closes MLflow after the others are done; a launcher would end it once another rank exits with a code
        dist.barrier()
    except Exception as error:
        log.info("rank %d ends", rank, exc_info=True)
        if is_lost_peer(error) and rank > 0:
            time.sleep(LAST_WORD)  # let the rank that failed first, or rank 0, print its reason before this one
        ended(End.of(error, trainer.step if trainer else None), first=rank == 0 or is_lost_peer(error))
        if explanation := _explained_failure(error, config, topology, trainer.engine if trainer else None, watchdog):
            raise explanation from error
        raise
    watchdog.close()  # not after an error: the watchdog ends a failing rank that hangs while it ends
    return code


def _explained_failure(
    error: Exception, config: RunConfig, topology: Topology, engine: "Engine | None", watchdog: Watchdog
) -> TrainingError | None:
    """Return an error with instructions for an error that a library raised; None when it is of no known kind."""
    from training.faults.postmortem import full_disk, is_full_disk, is_lost_peer, is_out_of_memory, out_of_memory

    rank = topology.info.rank
    if is_out_of_memory(error):
        return RankError(f"rank {rank}: {out_of_memory(error, config, engine, topology)}")
    if is_full_disk(error):
        return RankError(f"rank {rank}: {full_disk(error, config)}")
    if is_lost_peer(error):
        watchdog.let_speak()
        return TrainingError(
            f"rank {rank} lost another rank ({one_line(error)}); log/rank-*.log of {config.run.folder} say which ended "
            "and why. Run the same command again to continue from the last checkpoint"
        )
    return None


def _take_run(config: RunConfig, info: RankInfo) -> tuple[RunLock | None, Tracker | None]:
    """Let rank 0 take the run's lock, open the MLflow run and write the run's folder. Collective.

    Returns the lock and the tracker on rank 0, (None, None) elsewhere. Raises `ConfigError` on every rank when rank 0
    failed.
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
    """Record the end of this attempt, right before a second Ctrl-C ends the process."""
    write_end(config.run.folder, End("KILLED", "interrupted twice, not saved", EXIT_INTERRUPTED, signal="SIGINT"))
