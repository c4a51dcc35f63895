"""One process of a run: find out who it is, refuse what cannot work, then train."""

import torch
import torch.distributed as dist

from training.config import RunConfig
from training.devices import keep_freed_memory
from training.errors import EXIT_FINISHED, ConfigError
from training.logs import quiet_libraries, setup_logging
from training.planning import lines_at_start
from training.preflight import check
from training.reporting import open_folder, start_tracker
from training.topology import RankInfo, broadcast, initialize
from training.tracking import Tracker


def run(config: RunConfig, local_rank: int | None = None) -> int:
    """Run or continue `config`; the exit code.  Raises one of `BAD_INPUT` before anything is written."""
    info = RankInfo.discover(local_rank)
    check(config, info)
    if is_finished(config):
        if info.rank == 0:
            folder = config.run.folder
            print(f"{folder} is finished: {config.total_steps} steps, {config.total_tokens:,} tokens.")
            print(f"To start anew choose another run.name=NAME, or delete {folder}")
        return EXIT_FINISHED
    torch.manual_seed(config.run.seed)
    topology = initialize(config, info)
    if topology.device.type == "cpu":
        keep_freed_memory()
    quiet_libraries()
    try:
        tracker = _start_tracking(config, info)
        setup_logging(config.run.folder, info.rank)
        from training.loop import Trainer

        trainer = Trainer(config, topology, tracker)
        name = torch.cuda.get_device_name(topology.device) if topology.device.type == "cuda" else "CPU"
        for line in lines_at_start(config, info.world_size, name):
            trainer.reporter.note(line)
        code = trainer.run()
        dist.barrier()  # the launcher ends all ranks once one has left with a code, and rank 0 closes MLflow last
        return code
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _start_tracking(config: RunConfig, info: RankInfo) -> Tracker | None:
    """Rank 0 opens the MLflow run and then the run's folder; every rank learns whether that failed.  Collective."""
    tracker, problem = None, ""
    if info.rank == 0:
        try:
            tracker = start_tracker(config)
            open_folder(config, tracker)
        except ConfigError as error:
            problem = str(error)
        except OSError as error:
            problem = f"run.output_dir: {config.run.folder} cannot be written ({error}); choose another run.output_dir"
    if problem := broadcast(problem):
        raise ConfigError(problem)
    return tracker


def is_finished(config: RunConfig) -> bool:
    """Whether the run's latest checkpoint is its last step."""
    from training.checkpoint import latest_checkpoint, read_run_state

    latest = latest_checkpoint(config.run.folder / "checkpoints")
    return latest is not None and read_run_state(latest).step >= config.total_steps
