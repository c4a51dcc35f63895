"""Searches the valid topologies of a number of devices for the fastest that fits."""

from collections.abc import Iterator
from dataclasses import dataclass

from training.config import RunConfig
from training.errors import ConfigError
from training.planning.devices import GIB, Device
from training.planning.plan import Plan, make_plan, topology_problems

MOST_SAMPLES = 64  # largest micro-batch that is tried; plans do not get faster beyond it


@dataclass(frozen=True)
class Found:
    """The result of a search.

    plans: those that fit, fastest first; smallest: the plan that needs least memory; legal: number of valid topologies.
    """

    plans: list[Plan]
    smallest: Plan | None
    legal: int

    @property
    def best(self) -> Plan:
        """The fastest plan that fits."""
        return self.plans[0]


def search(config: RunConfig, world: int, device: Device, offload: bool = False) -> Found:
    """Plan all valid topologies of `world` devices, and rank them by the predicted time of the whole run.

    offload: try all settings of training.offload that offload; else the configured setting is kept.
    """
    fitting: list[Plan] = []
    smallest, legal = None, 0
    for candidate in candidates(config, world, device, offload):
        plan, legal = make_plan(candidate, world, device), legal + 1
        if smallest is None or plan.memory.total < smallest.memory.total:
            smallest = plan
        if plan.fits:
            fitting.append(plan)
    return Found(sorted(fitting, key=_rank), smallest, legal)


def best_plan(config: RunConfig, world: int, device: Device) -> Found:
    """Search the topologies, with offloading when nothing fits without it.

    Raises `ConfigError` when no topology is valid or none fits.
    """
    found = search(config, world, device)
    if not found.plans and device.name != "CPU":
        offloading = search(config, world, device, offload=True)
        found = offloading if offloading.plans else found
    if not found.legal:
        raise ConfigError(_no_topology(config, world, device))
    if not found.plans:
        raise ConfigError(_too_large(config, found, world, device))
    return found


def candidates(config: RunConfig, world: int, device: Device, offload: bool) -> Iterator[RunConfig]:
    """Yield copies of `config` with every valid topology, ZeRO stage, micro-batch size and checkpointing."""
    settings = ("optimizer", "all") if offload else (config.training.offload,)
    for tensor, pipeline, segment in _arrangements(config, world, device):
        for sequence in {False, tensor > 1}:
            parallel = config.parallel.model_copy(
                update={"tensor": tensor, "pipeline": pipeline, "segment": segment, "sequence": sequence}
            )
            for zero in (1, 2, 3):
                for setting in settings:
                    if setting == "all" and zero < 3:
                        continue
                    base = config.training.model_copy(
                        update={"zero_stage": zero, "offload": setting, "micro_batch_size": 1}
                    )
                    trial = config.model_copy(update={"parallel": parallel, "training": base})
                    if not topology_problems(trial, world, device):
                        yield from _variants(trial, world // (tensor * pipeline * segment))


def _arrangements(config: RunConfig, world: int, device: Device) -> Iterator[tuple[int, int, int]]:
    """Yield (tensor, pipeline, segment) whose product divides the number of devices."""
    most = min(world, device.node_size)
    segments = -(-config.data.sequence_length // config.model.segment_length)
    for tensor in _divisors(world, most):
        for pipeline in _divisors(world // tensor, config.model.num_layers):
            for segment in _divisors(world // (tensor * pipeline), segments):
                if segments % segment == 0:
                    yield tensor, pipeline, segment


def _variants(config: RunConfig, data: int) -> Iterator[RunConfig]:
    """Yield copies with each micro-batch size that divides every phase's batch, and each kind of checkpointing."""
    samples = [phase.tokens_per_step // config.data.sequence_length for phase in config.phases]
    micro_batch = 1
    while micro_batch <= MOST_SAMPLES and all(n % (micro_batch * data) == 0 for n in samples):
        for checkpointing in ("none", "selective", "full"):
            update = {"micro_batch_size": micro_batch, "activation_checkpointing": checkpointing}
            yield config.model_copy(update={"training": config.training.model_copy(update=update)})
        micro_batch *= 2


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]


def _rank(plan: Plan) -> tuple[float, int, int, int, float]:
    """Return the sort key: time to three digits, then simplicity of the topology, then memory."""
    parallel, training = plan.config.parallel, plan.config.training
    simple = parallel.tensor * parallel.pipeline * parallel.segment
    return float(f"{plan.seconds:.3g}"), simple, training.zero_stage, int(parallel.sequence), plan.memory.total


def _no_topology(config: RunConfig, world: int, device: Device) -> str:
    """Return the message when no topology is valid, with the nearest numbers of devices that have one."""
    samples = min(phase.tokens_per_step // config.data.sequence_length for phase in config.phases)
    near = sorted(range(max(1, world // 2), 2 * world + 1), key=lambda n: (abs(n - world), n))
    nearest = [n for n in near[:200] if next(candidates(config, n, device, offload=False), None)][:2]
    known = " or ".join(str(n) for n in sorted(nearest)) or "none between half and twice as many"
    return (
        f"--devices: {world} cannot be arranged as tensor x pipeline x segment x data such that the {samples} samples "
        f"of a step are shared evenly; the nearest numbers of devices that can: {known}"
    )


def _too_large(config: RunConfig, found: Found, world: int, device: Device) -> str:
    """Return the message when no topology fits: the largest part of the smallest plan, and how many devices suffice."""
    assert found.smallest is not None
    memory = found.smallest.memory
    largest = f"{memory.largest} {memory.parts[memory.largest] / GIB:.1f} GiB"
    more = world
    while more < 64 * world:
        more *= 2
        if search(config, more, device).plans:
            way_out = f"{more} {device.name} suffice"
            break
    else:
        way_out = "more devices do not help: shorten data.sequence_length or make the model smaller"
    return (
        f"--devices: no topology of {world} {device.name} fits: the smallest ({' '.join(found.smallest.overrides())}) "
        f"needs {memory.total / GIB:.1f} GiB a device of {device.usable / GIB:.1f} GiB, most of it {largest}; {way_out}"
    )
