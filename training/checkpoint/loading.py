"""Reading a checkpoint into an engine of any topology, or into a model of one process."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from model.parallel import is_sharded
from training.checkpoint.reading import BoxPlanner, BoxReader
from training.checkpoint.run_state import read_run_state
from training.checkpoint.safe_reader import read_metadata
from training.checkpoint.shards import TensorShard, boxes
from training.distributed.topology import Topology
from training.engine import Engine
from training.errors import ConfigError, TrainingError

RNG_KEY = "rng"


def restore(engine: Engine, checkpoint: Path, topology: Topology, moments: bool, rng: bool) -> None:
    """Load what `checkpoint` holds of `engine`'s parameters; others keep their initial values. Collective.

    Each rank reads its own share of the optimizer's state alone, right into the optimizer's memory; the weights that
    the model computes with are then gathered from the ranks' shares.

    moments: also AdamW's state and its step counts; rng: also the random generator's state (a resume).
    """
    share = list(_own_share(engine, stored_names(checkpoint), topology, moments))
    generator = torch.get_rng_state()
    if rng:
        share.append(_whole(RNG_KEY, generator))
    load_boxes(share, checkpoint)
    engine.take_loaded()
    if moments:
        engine.set_optimizer_steps(read_run_state(checkpoint).optimizer_steps)
    if rng:
        torch.set_rng_state(generator)


def _own_share(engine: Engine, stored: set[str], topology: Topology, moments: bool) -> Iterator[TensorShard]:
    """The boxes of whole tensors that this rank keeps; their values are the memory to fill."""
    tensor = topology.tensor
    for key, start, values in engine.memory_to_load(stored, moments):
        name = key.partition("/")[0]
        parameter = engine.parameters[name]
        dim = parameter.partition_dim if is_sharded(parameter) else None  # type: ignore[attr-defined]
        yield from boxes(key, engine.shapes[name], start, values, dim, tensor.rank, tensor.size)


def load_boxes(wanted: list[TensorShard], checkpoint: Path) -> None:
    """Fill the boxes' values in place; each rank reads for itself. Raises `TrainingError` when it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP's, of typed storage and of a single process
            dcp.load({}, storage_reader=BoxReader(checkpoint), planner=BoxPlanner(wanted), no_dist=True)
    except dcp.CheckpointException as error:
        causes = "; ".join(str(cause) for cause, _stack in error.failures.values())
        raise TrainingError(f"{checkpoint}: cannot be loaded ({' '.join(causes.split())[:300]})") from None


def load_tensors(values: dict[str, Tensor], checkpoint: Path) -> None:
    """Fill whole tensors in place, by key. Raises `TrainingError` when it cannot."""
    load_boxes([_whole(key, value) for key, value in values.items()], checkpoint)


def _whole(key: str, values: Tensor) -> TensorShard:
    return TensorShard(key, values.size(), torch.Size([0] * values.dim()), values)


def load_weights(checkpoint: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Load whole (unsharded) weights into `parameters` of one process, by canonical name, in place.

    Raises `ConfigError` naming weights the checkpoint lacks.
    """
    stored = stored_names(checkpoint)
    if missing := sorted(parameters.keys() - stored):
        raise ConfigError(f"checkpoint: {checkpoint} lacks {', '.join(missing[:4])}; it was made by another model")
    load_tensors({name: p.detach() for name, p in parameters.items()}, checkpoint)


def stored_names(checkpoint: Path) -> set[str]:
    """Names of everything a checkpoint holds."""
    return set(read_metadata(checkpoint).state_dict_metadata)


def check_shapes(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise `ConfigError` when a weight of `model` (whole, may be on the meta device) is stored in another shape."""
    stored: dict[str, Any] = read_metadata(checkpoint).state_dict_metadata
    for name, parameter in model.named_parameters():
        if name in stored and stored[name].size != parameter.shape:
            raise ConfigError(
                f"checkpoint: {checkpoint} has {name} of shape {list(stored[name].size)}, model.* gives "
                f"{list(parameter.shape)}; use the configuration that made it"
            )
