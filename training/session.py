"""One process of a run: find out who it is, refuse what cannot work, then train."""

import torch
import torch.distributed as dist

from training.config import RunConfig
from training.errors import EXIT_FINISHED
from training.logs import setup_logging
from training.preflight import check
from training.reporting import save_config
from training.topology import RankInfo, initialize


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
    if info.rank == 0:
        save_config(config, config.run.folder)
    setup_logging(config.run.folder, info.rank)
    try:
        from training.loop import Trainer

        return Trainer(config, topology).run()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_finished(config: RunConfig) -> bool:
    """Whether the run's latest checkpoint is its last step."""
    from training.checkpoint import latest_checkpoint, read_run_state

    latest = latest_checkpoint(config.run.folder / "checkpoints")
    return latest is not None and read_run_state(latest).step >= config.total_steps
