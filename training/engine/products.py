"""Chooses the precision of a memory's matrix products, and logs how the memory is computed."""

import logging

import torch

from training.config import Phase, RunConfig
from training.distributed.topology import Topology

log = logging.getLogger("memtrain")


def choose_products(config: RunConfig, phase: Phase, topology: Topology) -> None:
    """Let a bf16 run on a GPU compute fp32 matrix products in TF32, and log how the memory is computed.

    Only memories have fp32 products. Their banks stay fp32; TF32 rounds the factors of a product to 11 significant bits
    (bf16: 8). The setting holds for the whole process.
    """
    bf16 = config.training.precision == "bf16"
    if topology.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    memory, segment = config.model.memory, config.parallel.segment
    path = memory.computed_by(config.model, topology.device, config.training.precision, segment)
    if phase.memory and path is not None:
        log.info("%s: %s", memory.kind, path)
