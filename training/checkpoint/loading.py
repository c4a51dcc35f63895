"""Loads a checkpoint into an engine of any topology, or into a model of one process."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from data_prep.errors import one_line
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
    """Load the parameters of `engine` that `checkpoint` has; the others keep their initial values. Collective.

    Each rank reads only its own share of the fp32 state, directly into the optimizer's memory. The weights that the
    model computes with are then gathered from all shares.

    Args:
        engine: the engine to fill.
        checkpoint: folder of the checkpoint.
        topology: process groups of this rank.
        moments: also load AdamW's moments and step counts.
        rng: also load the state of the random generator, for a resume.

    Raises:
        TrainingError: the checkpoint cannot be read.
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
    """Yield the boxes of whole tensors that this rank keeps; their values are the memory to fill."""
    tensor = topology.tensor
    for key, start, values in engine.memory_to_load(stored, moments):
        name = key.partition("/")[0]
        parameter = engine.parameters[name]
        dim = parameter.partition_dim if is_sharded(parameter) else None  # type: ignore[attr-defined]
        yield from boxes(key, engine.shapes[name], start, values, dim, tensor.rank, tensor.size)


def load_boxes(wanted: list[TensorShard], checkpoint: Path) -> None:
    """Fill the boxes' values in place from `checkpoint`, on this rank alone. Raises `TrainingError` when it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP warns about typed storage and about a single process
            dcp.load({}, storage_reader=BoxReader(checkpoint), planner=BoxPlanner(wanted), no_dist=True)
    except dcp.CheckpointException as error:
        causes = "; ".join(str(cause) for cause, _stack in error.failures.values())
        raise TrainingError(f"{checkpoint}: cannot be loaded ({one_line(causes)})") from None


def load_tensors(values: dict[str, Tensor], checkpoint: Path) -> None:
    """Fill whole tensors in place, by key. Raises `TrainingError` when it cannot."""
    load_boxes([_whole(key, value) for key, value in values.items()], checkpoint)


def _whole(key: str, values: Tensor) -> TensorShard:
    return TensorShard(key, values.size(), torch.Size([0] * values.dim()), values)


def load_weights(checkpoint: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Load whole weights in place into the unsharded `parameters` of one process, by canonical name.

    Raises `ConfigError` naming the weights that the checkpoint lacks, `TrainingError` when it cannot be read.
    """
    stored = stored_names(checkpoint)
    if missing := sorted(parameters.keys() - stored):
        raise ConfigError(f"checkpoint: {checkpoint} lacks {', '.join(missing[:4])}; it is of another model")
    load_tensors({name: p.detach() for name, p in parameters.items()}, checkpoint)


def stored_names(checkpoint: Path) -> set[str]:
    """Return the keys of all tensors in a checkpoint: weights, `name/moment` and the random state."""
    return set(read_metadata(checkpoint).state_dict_metadata)


def check_shapes(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise `ConfigError` when a weight of the unsharded `model` is stored in another shape; meta tensors suffice."""
    stored: dict[str, Any] = read_metadata(checkpoint).state_dict_metadata
    for name, parameter in model.named_parameters():
        if name in stored and stored[name].size != parameter.shape:
            raise ConfigError(
                f"checkpoint: {checkpoint} has {name} of shape {list(stored[name].size)}, but model.* gives "
                f"{list(parameter.shape)}; use the model section of the checkpoint's run"
            )
