"""Builds the engine of a phase."""

from collections.abc import Container

from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.zero import PlainEngine


def build_engine(
    config: RunConfig, phase: Phase, topology: Topology, loaded_later: Container[str] = frozenset()
) -> Engine:
    """Return the engine of one phase. Collective.

    loaded_later: names of parameters that hold NaN until a checkpoint is loaded into them.
    """
    kind = PipelineEngine if topology.pipeline_size > 1 else PlainEngine
    return kind(config, phase, topology, loaded_later)
