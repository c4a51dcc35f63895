"""The configuration of a run: its sections, the rules between them, and reading it from YAML with overrides."""

from training.config.loading import apply_override, dump_yaml, explain, load_config, parse_config, read_yaml
from training.config.run import RunConfig
from training.config.sections import FaultConfig, LearningRate, Phase, Positive, Section, TrainingSection

__all__ = [
    "FaultConfig",
    "LearningRate",
    "Phase",
    "Positive",
    "RunConfig",
    "Section",
    "TrainingSection",
    "apply_override",
    "dump_yaml",
    "explain",
    "load_config",
    "parse_config",
    "read_yaml",
]
