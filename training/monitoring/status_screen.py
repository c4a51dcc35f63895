"""A run's status as text for one terminal screen."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from training.monitoring.status import Heartbeat, Status
from training.monitoring.units import duration

COLORS = {"finished": "green", "training": "green", "waiting": "yellow", "starting": "yellow", "stopped": "yellow"}


def screen(status: Status) -> RenderableType:
    """Return the status of a run in a form that fits one terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _lines(status):
        table.add_row(name, value)
    parts: list[RenderableType] = [table]
    if status.errors:
        parts.append(Text("last warnings and errors", style="dim"))
        parts += [Text(f"  {line[:300]}") for line in status.errors]
    return Group(*parts)


def _lines(status: Status) -> list[tuple[str, RenderableType]]:
    color = COLORS.get(status.state, "red")
    lines: list[tuple[str, RenderableType]] = [
        ("run", Text(f"{status.name}  ({status.folder})")),
        ("state", Text.assemble((status.state, f"bold {color}"), f"  {status.about}")),
    ]
    if status.job:
        job = status.job
        about = "  ".join(part for part in (job.state, job.reason, job.nodes) if part)
        left = f"  time left {job.time_left}" if job.time_left and job.runs else ""
        lines.append(("job", Text(f"{job.id}  {about}{left}" + (f"  ({job.source})" if job.source else ""))))
    if status.excluded_nodes:
        lines.append(("bad nodes", Text(f"{', '.join(status.excluded_nodes)}, not used again")))
    if not status.steps:
        return lines
    lines += [
        ("phase", Text(status.phase)),
        ("step", Text(f"{status.step:,} of {status.steps:,}  ({status.step / status.steps:.1%})")),
        ("", ProgressBar(total=status.steps, completed=status.step, width=40)),
        ("tokens", Text(f"{status.tokens:,} of {status.total_tokens:,}")),
        ("loss", Text(_loss(status))),
        ("speed", Text(_speed(status))),
        ("goodput", Text(_goodput(status))),
        ("checkpoint", Text(_checkpoint(status))),
        ("restarts", Text(_restarts(status))),
        ("ranks", Text(_ranks(status.heartbeats, status.world_size))),
    ]
    return [*lines, ("MLflow run", Text(status.mlflow_run_id))] if status.mlflow_run_id else lines


def _loss(status: Status) -> str:
    loss = "-" if status.loss is None else f"{status.loss:.4f}"
    return loss + ("" if status.valid_loss is None else f"  valid {status.valid_loss:.4f}")


def _speed(status: Status) -> str:
    speed = "-" if status.tokens_per_second is None else f"{status.tokens_per_second:,.0f} tokens/s"
    return speed + ("" if status.eta_seconds is None else f"  {duration(status.eta_seconds)} left")


def _goodput(status: Status) -> str:
    if status.goodput is None or status.wall_seconds is None:
        return "-"
    return f"{status.goodput:.1%} of the {duration(status.wall_seconds)} since the first start were steps that count"


def _checkpoint(status: Status) -> str:
    if status.checkpoint_step is None or status.checkpoint_age is None:
        return "none yet"
    return f"step {status.checkpoint_step:,}, {duration(status.checkpoint_age)} ago"


def _restarts(status: Status) -> str:
    if not status.starts:
        return "0"
    last = status.starts[-1]
    return f"{status.restarts}; last start {last['time']} on {last['host']}, after step {last['after_step']}"


def _ranks(heartbeats: Sequence[Heartbeat], world: int) -> str:
    """Return how many ranks are alive on each node, and a line for each rank without a heartbeat."""
    if not any(heartbeat.alive for heartbeat in heartbeats):
        return f"none of {world} alive" if heartbeats else "none, all have ended" if world else "-"
    nodes: dict[str, int] = {}
    for heartbeat in heartbeats:
        nodes[heartbeat.beat.host] = nodes.get(heartbeat.beat.host, 0) + heartbeat.alive
    alive = sum(nodes.values())
    text = f"{alive} of {world} alive: " + ", ".join(f"{host} {count}" for host, count in sorted(nodes.items()))
    silent = [h for h in heartbeats if not h.alive]
    told = [f"\nrank {h.beat.rank} on {h.beat.host} silent for {duration(h.age)}, {h.beat.doing}" for h in silent[:8]]
    slow = [h.beat for h in heartbeats if h.beat.where]
    return text + "".join(told) + "".join(f"\n{beat}" for beat in slow[:8])
