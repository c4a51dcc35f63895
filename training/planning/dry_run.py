"""Describes a configuration's model and schedule; the model is built on the meta device, without memory for weights."""

import torch

from model.cost import flops_per_token
from model.network import LanguageModel
from training.config import RunConfig


def describe(config: RunConfig) -> str:
    """Return a short text with the number of parameters, and steps, tokens and FLOPs of each phase."""
    with torch.device("meta"):
        net = LanguageModel(config.model)
    total = sum(p.numel() for p in net.parameters())
    memory = sum(p.numel() for _, p in net.memory_parameters())
    lines = [
        f"run {config.run.name}: {config.total_steps:,} steps, {config.total_tokens:,} tokens",
        f"model: {total:,} parameters, {memory:,} of them memory ({config.model.memory_name})",
    ]
    for phase in config.phases:
        flops = flops_per_token(config.model, phase.memory)
        lines.append(
            f"phase {phase.name}: memory {'on' if phase.memory else 'off'}, {phase.steps:,} steps of "
            f"{phase.tokens_per_step:,} tokens, {flops / 1e9:.3g} GFLOP a token"
        )
    return "\n".join(lines)
