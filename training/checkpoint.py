"""Checkpoints: torch.distributed.checkpoint under canonical names, so any topology reads any other's.

A checkpoint is written to a temporary folder, synced, renamed, and only then named by the pointer `latest`, which is
replaced atomically.  A process killed at any moment leaves the previous checkpoint as the latest one.
"""

import json
import logging
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from data_prep.files import sync, write_text
from model.parallel import is_sharded
from training.engine import Engine, moment_keys
from training.errors import ConfigError, TrainingError
from training.topology import Topology

log = logging.getLogger("memtrain")

STATE_FILE = "state.json"
POINTER = "latest"
RNG_KEY = "rng"


@dataclass(frozen=True)
class RunState:
    """What a checkpoint says beside its tensors."""

    step: int
    tokens: int
    samples: int
    phase: str
    phase_step: int
    optimizer_steps: dict[str, float]  # by family of parameters
    stream: str  # fingerprint of the training stream
    mlflow_run_id: str
    config: dict[str, Any]  # resolved
    versions: dict[str, str]


class CheckpointFolder:
    """`checkpoints/` of one run."""

    def __init__(self, folder: Path, topology: Topology) -> None:
        self.folder, self.topology = folder, topology

    def save(self, engine: Engine, state: RunState) -> Path:
        """Write `step-XXXXXXXX` and point `latest` at it.  Collective; returns when it is on disk."""
        final = self.folder / f"step-{state.step:08d}"
        aside = self.folder / f".{final.name}.partial"
        if self.topology.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        values: dict[str, Any] = dict(_global_tensors(engine, dict(engine.read_state()), self.topology))
        values[RNG_KEY] = torch.get_rng_state()
        with _quiet():
            dcp.save(values, checkpoint_id=aside)
        if self.topology.is_main:
            (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
            for path in [*aside.iterdir(), aside]:
                sync(path)
            if final.exists():  # an earlier life wrote it but died before moving the pointer
                shutil.rmtree(final)
            aside.rename(final)
            sync(self.folder)
            write_text(self.folder / POINTER, final.name + "\n")
        dist.barrier()
        return final

    def latest(self) -> Path | None:
        """The checkpoint to continue from, or None."""
        return latest_checkpoint(self.folder)

    def prune(self, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every` steps."""
        if not self.topology.is_main:
            return
        current = self.latest()
        found = sorted(self.folder.glob("step-????????"))
        # newer than the pointer: an earlier life wrote it and died before it moved the pointer
        orphans = [path for path in found if current is None or path.name > current.name]
        kept = [path for path in found if path not in orphans]
        for path in orphans + kept[:-keep_last]:
            for_ever = keep_every is not None and int(path.name.removeprefix("step-")) % keep_every == 0
            if path in orphans or not for_ever:
                shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `folder/latest` names, or None when nothing was saved.

    Raises `TrainingError` when the pointer names a checkpoint that is not whole.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    target = folder / name
    if Path(name).name != name or not (target / STATE_FILE).is_file() or not (target / ".metadata").is_file():
        raise TrainingError(f"{pointer} names '{name}', which is no whole checkpoint in {folder}")
    return target


def read_run_state(checkpoint: Path) -> RunState:
    """The JSON side of a checkpoint; raises `ConfigError` when it is none."""
    path = checkpoint / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"checkpoint: {checkpoint} has no readable {STATE_FILE} ({error}); "
            "pass a folder like RUN/checkpoints/step-XXXXXXXX"
        ) from None


def restore(engine: Engine, checkpoint: Path, topology: Topology, moments: bool, rng: bool) -> None:
    """Load what `checkpoint` holds of `engine`'s parameters; others keep their initial values.  Collective.

    moments: also AdamW's state and its step counts; rng: also the random generator's state (a resume).
    """
    stored = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    wanted = {
        key: torch.empty(engine.shapes[name], device=topology.device)
        for name in engine.parameters
        for key in ((name, *moment_keys(name)) if moments else (name,))
        if key in stored
    }
    values: dict[str, Any] = dict(_global_tensors(engine, wanted, topology))
    if rng:
        values[RNG_KEY] = torch.get_rng_state()
    with _quiet():
        dcp.load(values, checkpoint_id=checkpoint)
    engine.write_state({k: v.to_local() if isinstance(v, DTensor) else v for k, v in values.items() if k != RNG_KEY})
    if moments:
        engine.set_optimizer_steps(read_run_state(checkpoint).optimizer_steps)
    if rng:
        torch.set_rng_state(values[RNG_KEY])


def load_weights(checkpoint: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Load whole (unsharded) weights into `parameters` of one process, by canonical name, in place.

    Raises `ConfigError` naming weights the checkpoint lacks.
    """
    stored = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    if missing := sorted(parameters.keys() - stored.keys()):
        raise ConfigError(f"checkpoint: {checkpoint} lacks {', '.join(missing[:4])}; it was made by another model")
    values: dict[str, Any] = {name: p.detach() for name, p in parameters.items()}
    with _quiet():
        dcp.load(values, checkpoint_id=checkpoint, no_dist=True)


def stored_names(checkpoint: Path) -> set[str]:
    """Names of everything a checkpoint holds."""
    return set(dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata)


def check_shapes(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise `ConfigError` when a weight of `model` (whole, may be on the meta device) is stored in another shape."""
    stored: dict[str, Any] = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
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


class _quiet(warnings.catch_warnings):  # noqa: N801
    """DCP warns about single-process use and typed storage, neither of which concerns the user."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")
