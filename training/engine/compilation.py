"""Decides whether `training.compile` applies and which attention kernel is used, and logs both."""

import logging

from torch import nn

from model.decoder import DecoderLayer
from model.sdpa import activate_flash_attention_3
from training.config import Phase, RunConfig
from training.config.compiling import compile_obstacle
from training.distributed.topology import Topology

log = logging.getLogger("memtrain")


def compiles(config: RunConfig, phase: Phase, topology: Topology) -> bool:
    """Return whether this phase's decoder layers and loss are compiled; log it, with the reason when they are not."""
    wanted = config.training.compile
    if wanted == "off" or (wanted == "auto" and topology.device.type != "cuda"):
        return False
    if reason := compile_obstacle(config, phase):
        log.info("training.compile: phase %s runs without compilation, because of %s", phase.name, reason)
        return False
    log.info("training.compile: decoder layers and loss of phase %s are compiled in its first steps", phase.name)
    return True


def compile_layers(module: nn.Module) -> None:
    """Make every decoder layer below `module` compile when it is first called."""
    for layer in module.modules():
        if isinstance(layer, DecoderLayer):
            layer.compile_block()


def choose_attention(config: RunConfig, phase: Phase, topology: Topology) -> None:
    """Switch on FlashAttention-3 where it is installed, and log which attention kernel a GPU uses."""
    if topology.device.type != "cuda":
        return
    newest = activate_flash_attention_3(topology.device)
    if config.training.precision == "fp32" or (phase.memory and config.model.explicit is not None):
        why = "fp32" if config.training.precision == "fp32" else "explicit memory"
        log.info("attention: with a mask for documents, because of %s", why)
    else:
        log.info("attention: FlashAttention-%d inside documents", 3 if newest else 2)
