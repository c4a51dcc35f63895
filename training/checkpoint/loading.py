"""Reading a checkpoint into an engine of any topology, or into a model of one process."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from model.parallel import is_sharded
from training.checkpoint.run_state import read_run_state
from training.checkpoint.safe_reader import SafeReader, read_metadata
from training.distributed.topology import Topology
from training.engine import Engine, moment_keys
from training.errors import ConfigError, TrainingError

RNG_KEY = "rng"
LOADED_AT_ONCE = 1 << 30  # bytes of whole tensors that a rank holds while it loads


def restore(engine: Engine, checkpoint: Path, topology: Topology, moments: bool, rng: bool) -> None:
    """Load what `checkpoint` holds of `engine`'s parameters; others keep their initial values.  Collective.

    moments: also AdamW's state and its step counts; rng: also the random generator's state (a resume).
    """
    stored = read_metadata(checkpoint).state_dict_metadata
    keys = [
        key
        for name in engine.parameters
        for key in ((name, *moment_keys(name)) if moments else (name,))
        if key in stored
    ]
    for some in _parts(keys, engine):
        values = {key: torch.empty(engine.shapes[key.partition("/")[0]], device=topology.device) for key in some}
        load_tensors(_global_tensors(engine, values, topology), checkpoint)
        engine.write_state(values)
    if moments:
        engine.set_optimizer_steps(read_run_state(checkpoint).optimizer_steps)
    if rng:
        state = {RNG_KEY: torch.get_rng_state()}
        load_tensors(state, checkpoint)
        torch.set_rng_state(state[RNG_KEY])


def _parts(keys: list[str], engine: Engine) -> Iterator[list[str]]:
    """`keys` in parts of at most `LOADED_AT_ONCE` bytes, or of one tensor; the same on all replicas."""
    part: list[str] = []
    held = 0
    for key in keys:
        size = 4 * engine.shapes[key.partition("/")[0]].numel()
        if part and held + size > LOADED_AT_ONCE:
            yield part
            part, held = [], 0
        part.append(key)
        held += size
    if part:
        yield part


def load_tensors(values: dict[str, Tensor], checkpoint: Path) -> None:
    """Fill `values` in place; each rank reads for itself.  Raises `TrainingError` when it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP's, of typed storage and of a single process
            dcp.load(values, storage_reader=SafeReader(checkpoint), no_dist=True)  # type: ignore[arg-type]
    except dcp.CheckpointException as error:
        causes = "; ".join(str(cause) for cause, _stack in error.failures.values())
        raise TrainingError(f"{checkpoint}: cannot be loaded ({' '.join(causes.split())[:300]})") from None


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


def _global_tensors(engine: Engine, local: dict[str, Tensor], topology: Topology) -> dict[str, Tensor]:
    """Local values as DTensors over the tensor-parallel ranks where their parameter is sharded."""
    mesh = topology.mesh["tensor"]
    out: dict[str, Tensor] = {}
    for key, value in local.items():
        parameter = engine.parameters[key.partition("/")[0]]
        if is_sharded(parameter):
            dim = parameter.partition_dim  # type: ignore[attr-defined]
            value = DTensor.from_local(value.contiguous(), mesh, [Shard(dim)], run_check=False)
        out[key] = value
    return out
