"""The model, its optimizer and DeepSpeed behind `train_step` and `evaluate`."""

from training.engine.base import Engine, StepResult
from training.engine.build import build_engine
from training.engine.optimizer_state import decays, moment_keys
from training.engine.zero import LossModel

__all__ = ["Engine", "LossModel", "StepResult", "build_engine", "decays", "moment_keys"]
