"""What people need to know when a step went wrong: which samples on which rank, and where the memory went."""

import errno
import importlib

import torch
import torch.distributed as dist

from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine import Engine, StepResult
from training.faults.anomalies import LossGuard

_FULL = ("out of memory", "can't allocate memory", "not enough memory")


def gather_nonfinite_report(
    step: int, phase: str, result: StepResult, guard: LossGuard, share: range, config: RunConfig, topology: Topology
) -> str:
    """Who had which losses that were not finite, by rank and sample.  Collective."""
    size = config.training.micro_batch_size
    own = [f"{share[i * size]}..{share[min(len(share), (i + 1) * size) - 1]}" for i in guard.bad()]
    everywhere: list[list[str]] = [[] for _ in range(topology.info.world_size)]
    dist.all_gather_object(everywhere, own)
    ranks = [f"rank {rank}: samples {', '.join(bad)}" for rank, bad in enumerate(everywhere) if bad]
    found = "; ".join(ranks) or f"the losses of all samples are finite, their gradients are not, rank 0: {share}"
    return f"step {step} ({phase}): loss {result.loss}, gradient norm {result.grad_norm}; {found}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk, or this user's share of it, had no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException, config: RunConfig) -> str:
    """Where room is wanted, and how the run goes on."""
    return (
        f"no room left where {config.run.folder} is ({error}): make room (checkpoint.keep_last is "
        f"{config.checkpoint.keep_last}), then run the same command again to continue from the last checkpoint"
    )


def out_of_memory(error: BaseException, config: RunConfig, engine: Engine | None, topology: Topology) -> str:
    """Where the memory of this rank went, and what can be changed."""
    device = topology.device
    lines = [f"out of memory: {' '.join(str(error).split())[:300] or type(error).__name__}"]
    if engine is not None:
        lines.append("this rank holds " + _held(engine, config))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        lines += planned(config, engine.phase, topology.info.world_size, name)
    if device.type == "cuda":
        used, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        lines.append(f"on {device}: {used / 1e9:.2f} GB allocated, {most / 1e9:.2f} GB at most")
    training = config.training
    lines.append(
        f"lower training.micro_batch_size ({training.micro_batch_size}), set training.activation_checkpointing=full "
        f"(now {training.activation_checkpointing}), raise training.zero_stage ({training.zero_stage}), "
        "parallel.tensor or parallel.pipeline, or set training.offload=optimizer"
    )
    return "\n  ".join(lines)


def planned(config: RunConfig, phase: Phase, world: int, device_name: str) -> list[str]:
    """What the planner expected a rank of such a device to need, where there is a planner that knows it."""
    try:
        planner = importlib.import_module("training.planning.memory")
        devices = importlib.import_module("training.planning.devices").DEVICES
        device = next(device for key, device in devices.items() if key.lower() in device_name.lower())
        parts = planner.memory_of(config, phase, planner.ranks_of(config, world), device).parts
        return ["planned: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())]
    except Exception:  # it explains another failure and must not take its place
        return []


def _held(engine: Engine, config: RunConfig) -> str:
    width = 2 if config.training.precision == "bf16" else 4
    counts = engine.counts()
    parts = []
    for name, value in counts.items():
        size = 4 if name.endswith("optimizer_state") else width
        parts.append(f"{name.replace('_', ' ')} {value:,} ({value * size / 1e9:.2f} GB)")
    return ", ".join(parts) + ", and gradients, activations and buffers beside them"
