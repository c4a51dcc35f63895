"""Explains a failed step: which samples on which rank were not finite, and what takes the memory."""

import errno

import torch
import torch.distributed as dist

from data_prep.errors import one_line
from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine import Engine, StepResult
from training.faults.anomalies import LossGuard
from training.planning.memory import memory_of, ranks_of
from training.planning.summary import device_of

_FULL = ("out of memory", "can't allocate memory", "not enough memory")


def gather_nonfinite_report(
    step: int, phase: str, result: StepResult, guard: LossGuard, share: range, config: RunConfig, topology: Topology
) -> str:
    """Return a sentence that names, for every rank, the samples whose loss was not finite. Collective.

    share: numbers of the samples that this rank computed in the step.
    """
    size = config.training.micro_batch_size
    own = [f"{share[i * size]}..{share[min(len(share), (i + 1) * size) - 1]}" for i in guard.bad()]
    everywhere: list[list[str]] = [[] for _ in range(topology.info.world_size)]
    dist.all_gather_object(everywhere, own)
    ranks = [f"rank {rank}: samples {', '.join(bad)}" for rank, bad in enumerate(everywhere) if bad]
    found = "; ".join(ranks) or (
        f"the losses of all samples are finite, but their gradients are not; rank 0: samples {share[0]}..{share[-1]}"
    )
    return f"step {step} ({phase}): loss {result.loss}, gradient norm {result.grad_norm}; {found}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that a device or this machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether `error` means that a collective failed because another rank has ended."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))


def is_full_disk(error: BaseException) -> bool:
    """Return whether `error` means that a disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException, config: RunConfig) -> str:
    """Return the message for a full disk: where space is needed and how the run continues."""
    return (
        f"no space left on the disk of {config.run.folder} ({error}): free some (checkpoint.keep_last is "
        f"{config.checkpoint.keep_last}), then run the same command again to continue from the last checkpoint"
    )


def out_of_memory(error: BaseException, config: RunConfig, engine: Engine | None, topology: Topology) -> str:
    """Return the message for an out-of-memory error: what this rank holds, what was planned, what to change."""
    device = topology.device
    lines = [f"out of memory: {one_line(error) or type(error).__name__}"]
    if engine is not None:
        lines.append("this rank holds " + _held(engine, config))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        lines += planned(config, engine.phase, topology.info.world_size, name)
    if device.type == "cuda":
        used, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        lines.append(f"on {device}: {used / 1e9:.2f} GB allocated now, {most / 1e9:.2f} GB at the peak")
    training = config.training
    lines.append(
        f"lower training.micro_batch_size ({training.micro_batch_size}), set training.activation_checkpointing=full "
        f"(now {training.activation_checkpointing}), raise training.zero_stage ({training.zero_stage}), "
        "parallel.tensor or parallel.pipeline, or set training.offload=optimizer"
    )
    return "\n  ".join(lines)


def planned(config: RunConfig, phase: Phase, world: int, device_name: str) -> list[str]:
    """Return a line with the memory that the planner expected for a rank; empty for a device it does not know."""
    try:
        device = device_of(device_name)
        if device is None:
            return []
        parts = memory_of(config, phase, ranks_of(config, world), device).parts
        return ["planned: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())]
    except Exception:  # the out-of-memory error must be reported even when the plan fails
        return []


def _held(engine: Engine, config: RunConfig) -> str:
    width = 2 if config.training.precision == "bf16" else 4
    counts = engine.counts()
    parts = []
    for name, value in counts.items():
        size = 4 if name.endswith("optimizer_state") else width
        parts.append(f"{name.replace('_', ' ')} {value:,} ({value * size / 1e9:.2f} GB)")
    return ", ".join(parts) + ", and gradients, activations and buffers beside them"
