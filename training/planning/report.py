"""Prints plans as tables: with borders on a terminal, as plain text elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from model.cost import count_parameters, flops_per_token
from training.config import RunConfig
from training.monitoring.units import short
from training.planning.devices import GB, GIB, Device
from training.planning.goodput import HELD_LEAST, HOUR, RESTART, STORAGE, Goodput
from training.planning.memory import Memory
from training.planning.plan import DAY, Plan
from training.planning.timing import bubble_fraction

PIPED_WIDTH = 160  # columns when the output is not a terminal


def new_console() -> Console:
    """Return a console on standard output, wide enough for the tables when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def show_model(console: Console, config: RunConfig) -> None:
    """Print the number of parameters, and tokens, steps and FLOPs of each phase."""
    parameters = count_parameters(config.model)
    backbone = parameters.total - parameters.memory
    console.print(
        f"run {config.run.name}: {parameters.total:,} parameters, {backbone:,} backbone + {parameters.memory:,} memory "
        f"({config.model.memory_name})"
    )
    table = _table("phase", "memory", "tokens", "tokens a step", "steps", "GFLOP a token")
    for phase in config.phases:
        flops = flops_per_token(config.model, phase.memory) / 1e9
        on = "on" if phase.memory else "off"
        tokens = f"{phase.tokens:,}"
        table.add_row(phase.name, on, tokens, f"{phase.tokens_per_step:,}", f"{phase.steps:,}", f"{flops:.3g}")
    console.print(table)


def show_choice(console: Console, plans: Sequence[Plan], own: Plan | None) -> None:
    """Print the fastest plans, and that of the configured topology."""
    device, world = plans[0].device, plans[0].ranks.world
    console.print(f"\n{world} {device.name}: the fastest of what fits into {device.usable / GIB:.1f} GiB each")
    names = ("tensor", "pipeline", "segment", "data", "ZeRO", "micro-batch", "checkpointing", "sequence", "offload")
    table = _table("", *names, "GiB a rank", "tokens/s", "MFU", "time")
    for rank, plan in enumerate(plans, start=1):
        table.add_row(str(rank), *_choice(plan))
    if own is not None:
        table.add_row("own", *_choice(own))
    console.print(table)


def show_details(console: Console, plan: Plan) -> None:
    """Print memory, time and traffic of one plan."""
    console.print(f"\nmemory of the fullest rank, phase {plan.fullest_phase}")
    memory = _table("part", "GiB")
    for name, size in plan.memory.parts.items():
        memory.add_row(name, f"{size / GIB:.2f}")
    memory.add_row("total", f"{plan.memory.total / GIB:.2f}")
    if plan.memory.host:
        memory.add_row("in addition, in CPU memory", f"{plan.memory.host / GIB:.2f}")
    console.print(memory)
    console.print("\nseconds of a step, on the slowest stage")
    steps = _table("phase", *plan.steps[0].parts, "total", "tokens/s", "MFU", "in documents", "days")
    for phase, step in zip(plan.config.phases, plan.steps, strict=True):
        seconds = [f"{value:.3g}" for value in (*step.parts.values(), step.seconds)]
        days = phase.steps * step.seconds / DAY
        mfu = f"{step.mfu:.1%}", f"{step.document_mfu:.1%}"
        steps.add_row(phase.name, *seconds, short(step.tokens_per_second), *mfu, f"{days:.3g}")
    console.print(steps)
    console.print("\nGB a rank sends in a step")
    links = ("tensor", "pipeline", "segment", "data", "host")
    traffic = _table("phase", *links, "micro-batches", "pipeline bubble")
    for phase, step in zip(plan.config.phases, plan.steps, strict=True):
        sizes = [f"{getattr(step.traffic, name).bytes / GB:.3g}" for name in links]
        bubble = bubble_fraction(step.micro_batches, plan.ranks.pipeline)
        traffic.add_row(phase.name, *sizes, str(step.micro_batches), f"{bubble:.1%}")
    console.print(traffic)
    size = plan.checkpoint_bytes / GB
    amount = f"{size:.1f} GB" if size >= 1 else f"{1000 * size:.1f} MB"
    console.print(f"\na checkpoint: {amount} (fp32 weights and two moments)")
    console.print(plan.device.assumptions(), soft_wrap=True)


def show_conclusion(console: Console, best: Plan, own: Plan | None) -> None:
    """Print the overrides of the best plan, and how much slower the configured topology is."""
    console.print(
        f"\n{duration(best.seconds)} for {short(best.config.total_tokens)} tokens at "
        f"{short(best.tokens_per_second)} tokens/s; append to pretrain.py:"
    )
    console.print(" ".join(best.overrides()), soft_wrap=True)
    if own is None:
        return
    if not own.fits:
        console.print("the configuration's own topology does not fit: " + misfit(own))
    elif own.overrides() != best.overrides():
        console.print(
            f"the configuration's own topology takes {duration(own.seconds)}, "
            f"{own.seconds / best.seconds:.2f} times as long"
        )
    else:
        console.print("that is the configuration's own topology")


def show_goodput(console: Console, found: Sequence[Goodput], default: bool) -> None:
    """Print failures, best checkpoint interval and fraction of time spent training, for each number of devices.

    default: the time between failures is the default, whose source is printed.
    """
    first = found[0]
    config, device = first.plan.config, first.plan.device
    own = f"at every {config.checkpoint.every_steps:,}"
    names = ("days without", "failures", "a failure in", "checkpoint", "every_steps", "restart", "trains", own, "days")
    table = _table(f"{device.name}", *names)
    for one in found:
        table.add_row(
            f"{one.plan.ranks.world:,}",
            f"{one.plan.days:.3g}",
            f"{one.failures:,.2g}",
            duration(one.between_failures),
            f"every {duration(one.interval)}",
            f"{one.every_steps:,}",
            duration(one.restart),
            f"{one.best_share:.2%}",
            f"{one.own_share:.2%}",
            f"{one.days:.3g}",
        )
    console.print(table)
    source = " (a default: Llama 3's 419 failures in 54 days on 16,384 H100, arXiv 2407.21783)" if default else ""
    console.print(f"\na {device.name} fails every {first.mtbf / HOUR:,.0f} hours{source}", soft_wrap=True)
    console.print(
        f"assumed: a checkpoint stops training for {HELD_LEAST:g} s and its copy to CPU memory; a machine reads and "
        f"writes {STORAGE / GB:g} GB/s; a restart takes {RESTART:g} s and reading the checkpoint twice; a failure ends "
        "the whole run, which continues on the same number of devices",
        soft_wrap=True,
    )


def misfit(plan: Plan) -> str:
    """Return a sentence about a plan that does not fit: needed and available memory, and the largest part."""
    memory, device = plan.memory, plan.device
    return (
        f"it needs {memory.total / GIB:.1f} GiB a rank of the {device.usable / GIB:.1f} GiB a device ({device.name}) "
        f"gives; the largest part is {memory.largest}, {memory.parts[memory.largest] / GIB:.1f} GiB"
    )


def describe_memory(memory: Memory, device: Device) -> str:
    """Return a line with needed and available memory of a rank, and the largest part."""
    return (
        f"about {memory.total / GIB:.1f} GiB a rank of {device.usable / GIB:.1f}, most of it {memory.largest} "
        f"({memory.parts[memory.largest] / GIB:.1f} GiB)"
    )


def duration(seconds: float) -> str:
    """Return an estimated duration as one number of three digits with a unit, such as 3.25 days."""
    for unit, size in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size * 1.5:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _choice(plan: Plan) -> list[str]:
    training, ranks = plan.config.training, plan.ranks
    numbers = (ranks.tensor, ranks.pipeline, ranks.segment, ranks.data, training.zero_stage, training.micro_batch_size)
    sequence = "yes" if plan.config.parallel.sequence else "no"
    settings = [training.activation_checkpointing, sequence, training.offload]
    size = f"{plan.memory.total / GIB:.1f}" + ("" if plan.fits else " (does not fit)")
    return [
        *map(str, numbers),
        *settings,
        size,
        short(plan.tokens_per_second),
        f"{plan.mfu:.1%}",
        duration(plan.seconds),
    ]


def _table(*columns: str) -> Table:
    plain = not Console().is_terminal
    table = Table(box=None, pad_edge=False) if plain else Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    return table
