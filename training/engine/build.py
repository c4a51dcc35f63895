"""Which engine a phase gets."""

from collections.abc import Container

from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.zero import PlainEngine


def build_engine(
    config: RunConfig, phase: Phase, topology: Topology, loaded_later: Container[str] = frozenset()
) -> Engine:
    """The engine for one phase; parameters named in `loaded_later` are NaN until they are loaded. Collective."""
    kind = PipelineEngine if topology.pipeline_size > 1 else PlainEngine
    return kind(config, phase, topology, loaded_later)
