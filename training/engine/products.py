"""How a memory's own matrix products are computed, and what is said about it at start."""

import logging

import torch

from model.memory import kernels
from training.config import Phase, RunConfig
from training.distributed.topology import Topology

log = logging.getLogger("memtrain")


def choose_products(config: RunConfig, phase: Phase, topology: Topology) -> None:
    """Let a bf16 run on a GPU take fp32 products, which only memories have, in TF32: banks stay fp32, products round
    their factors to 11 bits where bf16 has 8.  It holds for the process.  And say what `delta` runs on."""
    bf16 = config.training.precision == "bf16"
    if topology.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    if phase.memory and config.model.memory.kind == "delta":
        log.info("delta: %s", delta_path(config, topology.device))


def delta_path(config: RunConfig, device: torch.device) -> str:
    """What the delta rule runs on, in words."""
    width = config.model.hidden_size // config.model.memory.heads
    why = kernels.obstacle(device)
    if why is None and config.parallel.segment > 1:
        why = "parallel.segment passes banks between ranks"
    if why is None and config.training.precision == "fp32":
        why = "it has no fp32"
    if why is None and width > kernels.WIDEST:
        why = f"heads are {width} wide, it takes {kernels.WIDEST} at most: raise model.memory.heads"
    if why is None:
        return "segments by flash-linear-attention's kernel"
    return f"chunks by plain products, not by flash-linear-attention's kernel, because {why}"
