"""Which engine a phase gets."""

from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.zero import PlainEngine


def build_engine(config: RunConfig, phase: Phase, topology: Topology) -> Engine:
    """The engine for one phase.  Collective."""
    kind = PipelineEngine if topology.pipeline_size > 1 else PlainEngine
    return kind(config, phase, topology)
