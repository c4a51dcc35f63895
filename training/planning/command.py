"""The work of `launchers/plan.py` after its arguments are parsed."""

import math
from dataclasses import replace
from pathlib import Path

from training.config import RunConfig
from training.errors import ConfigError, output_folder
from training.planning.devices import DEVICES, Device
from training.planning.goodput import Goodput, parse_mtbf
from training.planning.plan import Plan, make_plan, topology_problems
from training.planning.report import (
    duration,
    misfit,
    new_console,
    show_choice,
    show_conclusion,
    show_details,
    show_goodput,
    show_model,
)
from training.planning.search import best_plan

SHOWN = 5  # number of the fastest plans that are shown


def plan_one(config: RunConfig, name: str, count: int, as_is: bool, documents: int | None) -> None:
    """Print the plan for `count` devices of the table's entry `name`, or of this machine's CPU.

    as_is: plan the configured topology instead of searching the fastest one.
    documents: tokens of each document; None: documents fill the windows of attention.
    Raises `ConfigError` when no topology is valid or none fits.
    """
    device = device_named(name, count, documents)
    own = _own(config, count, device, needed=as_is)
    console = new_console()
    if as_is and own is not None:
        if not own.fits:
            raise ConfigError(f"--devices: {misfit(own)}; {_nearest(config, count, device)}")
        show_model(console, config)
        show_choice(console, [own], None)
        show_details(console, own)
        return
    found = best_plan(config, count, device)
    show_model(console, config)
    show_choice(console, found.plans[:SHOWN], own)
    show_details(console, found.best)
    show_conclusion(console, found.best, own)


def plan_many(config: RunConfig, name: str, scale: str, folder: Path, documents: int | None) -> None:
    """Print the best plan for each number of devices, and draw them into `folder`.

    scale: numbers of devices as text.
    documents: tokens of each document; None: documents fill the windows of attention.
    Raises `ConfigError` when no number has a plan.
    """
    from training.planning.scale import plot_scale  # imports matplotlib, which only the picture needs

    plans, problems = _plans(config, name, scale, "--scale", documents)
    console = new_console()
    show_model(console, config)
    for plan in plans:
        console.print(
            f"{plan.ranks.world:6,} {plan.device.name}: {duration(plan.seconds):>10}, {plan.tokens_per_second:12,.0f} "
            f"tokens/s, MFU {plan.mfu:.1%}: {' '.join(plan.overrides())}",
            soft_wrap=True,
        )
    for problem in problems:
        console.print(f"left out: {problem}", soft_wrap=True)
    console.print(plans[0].device.assumptions())
    out = output_folder(folder, "--out") / f"plan-{config.run.name}.png"
    plot_scale(plans, out)
    console.print(f"drawn: {out}")


def plan_failures(config: RunConfig, name: str, scale: str, mtbf: str, folder: Path, documents: int | None) -> None:
    """Print and draw the fraction of time spent training when devices fail, for each number of devices.

    mtbf: hours between failures of one device, as text; empty: the default.
    documents: tokens of each document; None: documents fill the windows of attention.
    Raises `ConfigError` when no number has a plan.
    """
    from training.planning.scale import plot_goodput

    seconds = parse_mtbf(mtbf)
    plans, problems = _plans(config, name, scale, "--mtbf", documents)
    console, found = new_console(), [Goodput(plan, seconds) for plan in plans]
    show_model(console, config)
    show_goodput(console, found, default=not mtbf)
    for problem in problems:
        console.print(f"left out: {problem}", soft_wrap=True)
    out = output_folder(folder, "--out") / f"goodput-{config.run.name}.png"
    plot_goodput(found, out)
    console.print(f"drawn: {out}")


def _plans(
    config: RunConfig, name: str, scale: str, option: str, documents: int | None
) -> tuple[list[Plan], list[str]]:
    """Return the best plans for the numbers of devices that have one, and why the others have none."""
    from training.planning.scale import parse_scale, plan_scale

    counts = parse_scale(scale)
    if name == "cpu":
        raise ConfigError(f"{option}: cpu is this machine, whose number of cores is fixed; name a GPU, such as h200")
    plans, problems = plan_scale(config, counts, device_named(name, max(counts), documents))
    if not plans:
        raise ConfigError("\n".join(problems))
    return plans, problems


def device_named(name: str, count: int, documents: int | None) -> Device:
    """Return a device of the table, or this machine's CPU with a core for each of `count` ranks.

    documents: tokens of each document; None: documents fill the windows of attention.
    Raises `ConfigError` for a wrong `documents`.
    """
    if documents is not None and documents < 1:
        raise ConfigError(f"--document-tokens: {documents} must be at least 1, or leave the option out")
    if name != "cpu":
        return replace(DEVICES[name], document_tokens=documents or math.inf)
    if documents is not None:
        raise ConfigError(
            "--document-tokens: attention on a CPU computes also what documents hide; leave the option out, or name a "
            "GPU, such as h200"
        )
    from training.planning.probe import Cpu  # imports torch, which plans for GPUs do not need

    return Cpu(count)


def _own(config: RunConfig, count: int, device: Device, needed: bool) -> Plan | None:
    """Return the plan of the configured topology; None when it is not valid.

    Raises `ConfigError` when it is not valid and either `needed` or not the default of one rank.
    """
    parallel = config.parallel
    problems = topology_problems(config, count, device)
    if problems and (needed or (parallel.tensor, parallel.pipeline, parallel.segment) != (1, 1, 1)):
        raise ConfigError("\n".join(problems))
    return None if problems else make_plan(config, count, device)


def _nearest(config: RunConfig, count: int, device: Device) -> str:
    """Return the way out of a plan that does not fit: the fastest topology that does."""
    try:
        return f"the fastest that fits: {' '.join(best_plan(config, count, device).best.overrides())}"
    except ConfigError as error:
        return str(error)
