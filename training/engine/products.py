"""How a memory's own matrix products are computed, and what is said about it at start."""

import logging

import torch

from training.config import Phase, RunConfig
from training.distributed.topology import Topology

log = logging.getLogger("memtrain")


def choose_products(config: RunConfig, phase: Phase, topology: Topology) -> None:
    """Let a bf16 run on a GPU take fp32 products, which only memories have, in TF32: banks stay fp32, products round
    their factors to 11 bits where bf16 has 8.  It holds for the process.  And say what the memory runs on."""
    bf16 = config.training.precision == "bf16"
    if topology.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    memory, segment = config.model.memory, config.parallel.segment
    path = memory.computed_by(config.model, topology.device, config.training.precision, segment)
    if phase.memory and path is not None:
        log.info("%s: %s", memory.kind, path)
