"""Process groups of the ranks, in the order pipeline x data x segment x tensor (tensor varies fastest).

DeepSpeed's pipeline requires this order. DeepSpeed sees data x segment as one dimension: the ranks that have the same
weights and compute different tokens.
"""

import math
import platform
from dataclasses import dataclass
from datetime import timedelta
from itertools import product

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from data_prep.errors import one_line
from model.parallel import TensorParallel
from model.parallel_context import ParallelContext, SegmentParallel
from training.config import RunConfig
from training.distributed.devices import use_device
from training.distributed.meeting import meet
from training.distributed.ranks import RankInfo
from training.errors import ConfigError, RankError


@dataclass(frozen=True)
class Topology:
    """The process groups of one rank, and the device it computes on."""

    info: RankInfo
    mesh: DeviceMesh  # dimensions pipeline, data, segment, tensor
    data_parallel_group: dist.ProcessGroup  # data x segment: ranks with the same weights; gradients are summed over it
    parallel: ParallelContext  # what the model's layers know of other ranks
    device: torch.device

    @property
    def tensor(self) -> TensorParallel:
        """The tensor-parallel group."""
        return self.parallel.tensor

    @property
    def data_size(self) -> int:
        """Number of data-parallel ranks, without those of segment parallelism."""
        return self.mesh.size(1)

    @property
    def data_rank(self) -> int:
        """Index of this rank among them."""
        return self.mesh.get_local_rank("data")

    @property
    def segment_share(self) -> tuple[int, int]:
        """(rank, size) of this rank in its group of ranks that share the segments of a sample."""
        return self.parallel.segments.rank, self.parallel.segments.size

    @property
    def pipeline_size(self) -> int:
        """Number of pipeline stages."""
        return self.mesh.size(0)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.info.rank == 0


def check_world(config: RunConfig, info: RankInfo) -> None:
    """Raise `ConfigError` when the number of ranks does not fit the topology or the batch.

    It needs no process group, so that it can run before the ranks meet.
    """
    parallel, world = config.parallel, info.world_size
    if torch.cuda.is_available() and info.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"ranks: local rank {info.local_rank} has no GPU, this machine has {torch.cuda.device_count()}; "
            "start at most that many ranks here"
        )
    model_ranks = parallel.tensor * parallel.pipeline * parallel.segment
    if world % model_ranks:
        segment = f" x segment {parallel.segment}" if parallel.segment > 1 else ""
        raise ConfigError(
            f"parallel: {world} ranks were started, but tensor {parallel.tensor} x pipeline {parallel.pipeline}"
            f"{segment} needs a multiple of {model_ranks}; start {-(-world // model_ranks) * model_ranks} ranks"
            f"{_or_nearest(config, world)}"
        )
    if problem := _batch_problem(config, world // model_ranks):
        raise ConfigError(problem + _or_nearest(config, world))


def _batch_problem(config: RunConfig, data: int) -> str:
    """Return why a phase's batch cannot be divided among `data` data-parallel ranks; empty when all can."""
    for index, phase in enumerate(config.phases):
        samples = phase.tokens_per_step // config.data.sequence_length
        step = config.training.micro_batch_size * data
        if samples % step:
            return (
                f"phases.{index}.tokens_per_step: {phase.tokens_per_step} tokens are {samples} samples of "
                f"{config.data.sequence_length} tokens, which is not a multiple of training.micro_batch_size "
                f"{config.training.micro_batch_size} x {data} data-parallel ranks; use a multiple of "
                f"{step * config.data.sequence_length}, or change training.micro_batch_size"
            )
    return ""


def _or_nearest(config: RunConfig, world: int) -> str:
    """Return, as a clause of an error message, up to 3 valid topologies of `world` ranks as overrides.

    Nearest means the smallest sum of |log2| ratios of the tensor, pipeline and segment sizes to the configured ones.
    """
    asked, raw = config.parallel, config.model_dump()
    found: list[tuple[float, str]] = []
    for tensor, pipeline, segment in product(divisors(world), repeat=3):
        if world % (tensor * pipeline * segment):
            continue
        parallel = asked.model_copy(update={"tensor": tensor, "pipeline": pipeline, "segment": segment})
        data = world // (tensor * pipeline * segment)
        try:
            RunConfig.model_validate(raw | {"parallel": parallel.model_dump()})
        except ValidationError:
            continue
        if not _batch_problem(config, data):
            ratios = (tensor / asked.tensor, pipeline / asked.pipeline, segment / asked.segment)
            change = f"parallel.tensor={tensor} parallel.pipeline={pipeline}"
            change += f" parallel.segment={segment}" if segment > 1 or asked.segment > 1 else ""
            found.append((sum(abs(math.log2(r)) for r in ratios), f"{change} ({data} data-parallel)"))
    nearest = [text for _, text in sorted(found)[:3]]
    return f"; {world} ranks fit as: {', or '.join(nearest)}" if nearest else f"; no topology of {world} ranks fits"


def divisors(n: int) -> list[int]:
    """Return all divisors of `n` in ascending order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def initialize(config: RunConfig, info: RankInfo) -> Topology:
    """Start torch.distributed and build the device mesh. Collective.

    Raises:
        ConfigError: the port is taken, or another process has this rank.
        TrainingError: not all ranks came within `faults.hang_seconds`.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", info.local_rank) if cuda else torch.device("cpu")
    use_device(device)
    hang_seconds = config.faults.hang_seconds
    if not dist.is_initialized():
        # a longer timeout than the watchdog's, because the watchdog names the rank that is missing
        connect(info, "cpu:gloo,cuda:nccl" if cuda else "gloo", 2 * hang_seconds + 60, hang_seconds)
    parallel = config.parallel
    data = info.world_size // (parallel.tensor * parallel.pipeline * parallel.segment)
    shape = (parallel.pipeline, data, parallel.segment, parallel.tensor)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pipeline", "data", "segment", "tensor"))
    data_parallel_group = mesh["data", "segment"]._flatten().get_group()  # private: torch 2.13 has no public name
    context = ParallelContext(
        TensorParallel(mesh.get_group("tensor"), parallel.sequence),
        SegmentParallel(mesh.get_group("segment")),
        config.training.activation_checkpointing,
    )
    return Topology(info, mesh, data_parallel_group, context, device)


def connect(info: RankInfo, backend: str, seconds: float, meeting_seconds: float | None = None) -> None:
    """Start torch.distributed. Collective.

    Args:
        info: rank, world size and meeting point of this process.
        backend: torch.distributed's name of the backend.
        seconds: timeout of a collective.
        meeting_seconds: how long to wait until all ranks have connected; default: `seconds`.

    Raises:
        ConfigError: the port is taken, or another process has this rank.
        TrainingError: not all ranks came.
    """
    info.export()
    store, timeout = meet(info, meeting_seconds or seconds), timedelta(seconds=seconds)
    try:
        dist.init_process_group(backend, timeout=timeout, store=store, rank=info.rank, world_size=info.world_size)
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError) as error:
        raise RankError(
            f"rank {info.rank} on {platform.node()} has met the others at {info.master_addr}:{info.master_port} but "
            f"cannot connect to them ({one_line(error)}); the machines' firewalls must let all ports through between "
            "them"
        ) from error
    # private: groups that the mesh and DeepSpeed make later do not inherit this timeout, and their default of half an
    # hour would end a rank before the watchdog reports the hang
    distributed_c10d.default_pg_timeout = timeout


def broadcast(value: str) -> str:
    """Return rank 0's `value` on every rank. Collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
