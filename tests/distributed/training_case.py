"""What the ranks of the distributed tests run: a few steps of a tiny model on fixed random tokens."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.config import ExplicitConfig
from training.batches import MicroBatch, StepBatch, rank_share
from training.config import RunConfig, parse_config
from training.distributed.topology import RankInfo, Topology, initialize
from training.engine import Engine, build_engine

LENGTH, SAMPLES, VOCABULARY = 32, 8, 64
MICRO_BATCHES = 2  # a step of every data-parallel rank


def tiny_config(**changes: Any) -> RunConfig:
    """Two phases of a 4-layer model; `changes` are dotted keys with __ for the dots."""
    raw: Any = {
        "run": {"name": "tiny"},
        "data": {"path": "unused", "sequence_length": LENGTH},
        "model": {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "num_kv_heads": 2,
            "ffn_size": 48,
            "segment_length": 8,
            "tie_embeddings": False,
            "memory": {"kind": "lm2", "slots": 4, "heads": 2},
        },
        "phases": [
            {"name": name, "memory": on, "tokens": 4096, "tokens_per_step": SAMPLES * LENGTH, "lr": {"peak": 3e-3}}
            for name, on in (("warmup", False), ("memory", True))
        ],
        "training": {"micro_batch_size": SAMPLES // MICRO_BATCHES},
        "parallel": {},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node: Any = raw
        for part in path:
            node = node[int(part) if isinstance(node, list) else part]
        node[last] = value
    return parse_config(raw)


def micro_batches_of(data: int) -> dict[str, Any]:
    """A change for `tiny_config`: as many micro-batches a step with `data` data-parallel ranks as with one."""
    return {"training__micro_batch_size": SAMPLES // MICRO_BATCHES // data}


def step_batch(
    step: int,
    topology: Topology,
    micro_batch_size: int,
    length: int = LENGTH,
    explicit: ExplicitConfig | None = None,
) -> StepBatch:
    """This rank's share of fixed random samples with random document boundaries and unequal valid counts; with
    `explicit`, every chunk brings a random reference, and some bring none."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, VOCABULARY, (SAMPLES, length + 1), generator=generator)
    documents = (torch.rand(SAMPLES, length + 1, generator=generator) < 0.05 * LENGTH / length).cumsum(1)
    share = rank_share(0, SAMPLES, topology.data_rank, topology.data_size)
    micro_batches = []
    for first in range(share.start, share.stop, micro_batch_size):
        rows = slice(first, first + micro_batch_size)
        t, d = ids[rows], documents[rows]
        rank, size = topology.segment_share
        own = slice(rank * length // size, (rank + 1) * length // size)
        before = torch.nn.functional.pad(d[:, :-1], (1, 0), value=-1)[:, own.start : own.stop + 1]
        weights = (d[:, 1:] == d[:, :-1]).float()[:, own]
        parts = [t[:, :-1][:, own], before, t[:, 1:][:, own], weights]
        if explicit is not None:
            parts += [x[rows] for x in _references(step, documents, explicit)]
        micro_batches.append(MicroBatch(*(x.contiguous() for x in parts)))  # type: ignore[arg-type]
    return StepBatch(micro_batches)


def _references(step: int, documents: torch.Tensor, explicit: ExplicitConfig) -> tuple[torch.Tensor, ...]:
    """Tokens [SAMPLES, U, R], lengths and document ids [SAMPLES, U], as `training.references` gives them."""
    generator = torch.Generator().manual_seed(2000 + step)
    document_ids = torch.nn.functional.pad(
        documents[:, explicit.chunk_length - 1 :: explicit.chunk_length][:, :-1], (1, 0), value=-1
    )
    shape = *document_ids.shape, explicit.reference_length
    tokens = torch.randint(0, VOCABULARY, shape, generator=generator)
    lengths = torch.randint(0, explicit.reference_length + 1, document_ids.shape, generator=generator)
    return tokens, lengths, document_ids


def start(config: RunConfig, phase_index: int) -> tuple[Engine, Topology]:
    """The engine of one phase on this rank."""
    topology = initialize(config, RankInfo.discover())
    return build_engine(config, config.phases[phase_index], topology), topology


def whole_weights(engine: Engine, topology: Topology) -> dict[str, torch.Tensor]:
    """Every weight of every stage, unsharded, on every rank."""
    import torch.distributed as dist

    local = {name: value.clone() for name, value in engine.read_state()}
    everything: list[Any] = [None] * topology.info.world_size
    dist.all_gather_object(everything, (topology.mesh.get_coordinate(), local))
    merged: dict[str, dict[int, torch.Tensor]] = {}
    for coordinate, values in everything:
        for name, value in values.items():
            merged.setdefault(name, {})[coordinate[-1]] = value
    dims = {name: getattr(p, "partition_dim", 0) for name, p in engine.parameters.items()}
    box: list[Any] = [None] * topology.info.world_size
    dist.all_gather_object(
        box, {n: (d, bool(getattr(engine.parameters[n], "tensor_model_parallel", False))) for n, d in dims.items()}
    )
    layout = {name: how for part in box for name, how in part.items()}
    out = {}
    for name, shards in merged.items():
        dim, sharded = layout[name.partition("/")[0]]
        ordered = [shards[i] for i in sorted(shards)]
        out[name] = torch.cat(ordered, dim=dim) if sharded else ordered[0]
    return out


def train(config: RunConfig, phase_index: int, steps: int) -> dict[str, Any]:
    """Losses, norms and final weights of `steps` steps."""
    engine, topology = start(config, phase_index)
    explicit = config.model.explicit if config.phases[phase_index].memory else None

    def batch_of(step: int) -> StepBatch:
        return step_batch(step, topology, config.training.micro_batch_size, config.data.sequence_length, explicit)

    results = [engine.train_step(batch_of(s), 3e-3 * min(1.0, (s + 1) / 4)) for s in range(steps)]
    batch = batch_of(99)
    return {
        "loss": [r.loss for r in results],
        "grad_norm": [r.grad_norm for r in results],
        "gates": results[-1].gates,
        "valid": engine.evaluate(batch),
        "ablated": engine.evaluate(batch, ablate_memory=True),
        "weights": whole_weights(engine, topology),
        "counts": engine.counts(),
    }


def train_compiled(config: RunConfig, phase_index: int, steps: int, backend: str) -> dict[str, Any]:
    """`train` with a backend of torch.compile: "inductor" lowers the graphs to C++, which takes a minute; "aot_eager"
    makes and differentiates the same graphs, and leaves their operations to torch."""
    torch.compile = partial(torch.compile, backend=backend)  # type: ignore[assignment]  # in this rank's process only
    return train(config, phase_index, steps)


def switch(first: RunConfig, second: RunConfig, folder: str, steps: int) -> dict[str, Any]:
    """Warmup on `first`'s topology, saved; or, with steps=0, the memory phase restored on `second`'s."""
    from training.checkpoint.folder import CheckpointFolder, RunState, restore

    config, phase = (first, 0) if steps else (second, 1)
    engine, topology = start(config, phase)
    checkpoints = CheckpointFolder(Path(folder), topology)
    if steps:
        for s in range(steps):
            engine.train_step(step_batch(s, topology, config.training.micro_batch_size), 3e-3)
        state = RunState(steps, 0, 0, "warmup", steps, engine.optimizer_steps(), "", "", {}, {})
        checkpoints.save(engine, state)
    else:
        latest = checkpoints.latest()
        assert latest is not None
        restore(engine, latest, topology, moments=True, rng=True)
    batch = step_batch(99, topology, config.training.micro_batch_size)
    out: dict[str, Any] = {"valid": engine.evaluate(batch), "optimizer_steps": engine.optimizer_steps()}
    out["weights"] = whole_weights(engine, topology)
    result = engine.train_step(step_batch(50, topology, config.training.micro_batch_size), 3e-3)
    out["next"] = (result.loss, result.grad_norm)
    return out


def prune(folder: str, keep_last: int, keep_every: int | None) -> list[str]:
    """What pruning leaves of steps 10..50 and an orphan at 80, with the pointer at 50."""
    from training.checkpoint.folder import CheckpointFolder

    config = tiny_config()
    checkpoints = CheckpointFolder(Path(folder), initialize(config, RankInfo.discover()))
    for step in (10, 20, 30, 40, 50, 80):
        path = Path(folder) / f"step-{step:08d}"
        path.mkdir()
    (Path(folder) / "latest").write_text("step-00000050\n")
    checkpoints.prune(keep_last, keep_every)
    return sorted(path.name for path in Path(folder).glob("step-*"))


def memory_alone(config: RunConfig, folder: str) -> dict[str, Any]:
    """The backbone's state after a warmup of 3 steps, and after a phase of 2 that trains the memory alone; how many
    numbers of what is not trained this rank then holds."""
    from training.checkpoint.folder import CheckpointFolder, RunState, restore

    engine, topology = start(config, 0)
    checkpoints = CheckpointFolder(Path(folder), topology)

    def save(step: int) -> dict[str, torch.Tensor]:
        state = RunState(step, 0, 0, "", step, engine.optimizer_steps(), "", "", {}, {})
        checkpoints.save(engine, state)
        return {name: value.clone() for name, value in engine.read_state() if ".memory." not in name}

    for s in range(3):
        engine.train_step(step_batch(s, topology, config.training.micro_batch_size), 3e-3)
    before = save(3)
    engine.close()
    engine = build_engine(config, config.phases[1].model_copy(update={"trains": "memory"}), topology)
    latest = checkpoints.latest()
    assert latest is not None
    restore(engine, latest, topology, moments=True, rng=True)
    for s in range(3, 5):
        engine.train_step(step_batch(s, topology, config.training.micro_batch_size), 3e-3)
    after, held = save(5), sum(value.numel() for value in engine._untrained.values() if value is not None)
    return {"before": before, "after": after, "steps": engine.optimizer_steps(), "held": held}


def save_while_training(config: RunConfig, folder: str, fails: bool) -> dict[str, Any]:
    """A checkpoint whose copies are not begun before the update after it waits for them; what it was to hold, what it
    holds (read by the same ranks), and what the update made of it.  With `fails`, rank 0 cannot make its copies."""
    from training.checkpoint.folder import CheckpointFolder, RunState, restore
    from training.errors import TrainingError

    engine, topology = start(config, 1)
    checkpoints = CheckpointFolder(Path(folder), topology)
    batches = [step_batch(s, topology, config.training.micro_batch_size) for s in range(3)]
    engine.train_step(batches[0], 3e-3)
    before = whole_weights(engine, topology)
    copy, hold, waits = checkpoints._staging.copy, checkpoints._hold, threading.Event()

    def late_copy(parts: list[Any]) -> list[torch.Tensor]:
        assert waits.wait(60)
        if fails and topology.is_main:
            raise MemoryError("no room for copies")
        return copy(parts)

    def announced(copied: threading.Event) -> None:
        waits.set()
        hold(copied)

    checkpoints._staging.copy, checkpoints._hold = late_copy, announced  # type: ignore[method-assign]
    checkpoints.start(engine, RunState(1, 0, 0, "memory", 1, engine.optimizer_steps(), "", "", {}, {}))
    engine.evaluate(batches[2])
    assert not waits.is_set(), "an evaluation changes nothing: it need not wait"
    engine.train_step(batches[1], 3e-3)
    out: dict[str, Any] = {"before": before, "after": whole_weights(engine, topology), "waited": waits.is_set()}
    try:
        path = checkpoints.wait()
    except TrainingError as error:
        return out | {"error": str(error)}
    assert path is not None
    restore(engine, path, topology, moments=True, rng=False)
    return out | {"saved": whole_weights(engine, topology)}
