"""A summary of the plan in a few lines, for the start of a run."""

import logging

from model.cost import count_parameters
from training.config import RunConfig
from training.planning.devices import DEVICES, Device
from training.planning.plan import make_plan
from training.planning.report import describe_memory, duration

log = logging.getLogger("memtrain")


def summary(config: RunConfig, world_size: int, device: Device | None) -> list[str]:
    """Return a few lines for the start of a run; device None: unknown, and memory and time are left out."""
    parallel, parameters = config.parallel, count_parameters(config.model)
    data = world_size // (parallel.tensor * parallel.pipeline * parallel.segment)
    lines = [
        f"{parameters.total / 1e6:,.1f} M parameters, {parameters.memory / 1e6:,.1f} M of them memory; {world_size} "
        f"ranks: tensor {parallel.tensor} x pipeline {parallel.pipeline} x segment {parallel.segment} x data {data}, "
        f"ZeRO {config.training.zero_stage}"
    ]
    if device is None:
        return lines
    plan = make_plan(config, world_size, device)
    return [
        *lines,
        f"planned memory: {describe_memory(plan.memory, device)}",
        f"planned time: {duration(plan.seconds)} at {plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.0%} "
        "(launchers/plan.py explains it)",
    ]


def lines_at_start(config: RunConfig, world_size: int, device_name: str) -> list[str]:
    """Return `summary` for the device with torch's name `device_name`.

    An error in planning is logged and gives no lines, so that it does not end the run.
    """
    try:
        return summary(config, world_size, device_of(device_name))
    except Exception as error:
        log.warning("no plan: %s: %s", type(error).__name__, error)
        return []


def device_of(name: str) -> Device | None:
    """Return the device of the table for torch's name of a GPU, such as `NVIDIA H200`; None for others."""
    return next((device for device in DEVICES.values() if device.name in name), None)
