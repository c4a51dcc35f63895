"""The JSON part of a checkpoint: `state.json`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint.manifest import STATE_FILE, latest_checkpoint
from training.errors import ConfigError


@dataclass(frozen=True)
class RunState:
    """What a checkpoint stores beside its tensors."""

    step: int
    tokens: int
    samples: int
    phase: str
    phase_step: int
    optimizer_steps: dict[str, float]  # AdamW's steps, by family of parameters
    stream: str  # fingerprint of the training stream
    mlflow_run_id: str
    config: dict[str, Any]  # the resolved configuration
    versions: dict[str, str]  # of memtrain and its main libraries
    skipped: list[int] = field(default_factory=list)  # steps passed over without an update
    tokenizer: str = ""  # fingerprint of the tokenizer's file; empty in checkpoints of versions that did not store it


def read_run_state(checkpoint: Path) -> RunState:
    """Read the JSON part of a checkpoint. Raises `ConfigError` when the folder is not a checkpoint."""
    path = checkpoint / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint}: has no readable {STATE_FILE} ({error}); pass a folder like RUN/checkpoints/step-XXXXXXXX"
        ) from None


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run continues, found without reading its tensors; both None: nothing was saved."""

    checkpoint: Path | None
    state: RunState | None

    @classmethod
    def of(cls, run_folder: Path) -> "ResumePoint":
        """Find the latest checkpoint of a run. Raises `TrainingError` when there are checkpoints and none is whole."""
        latest = latest_checkpoint(run_folder / "checkpoints")
        return cls(latest, read_run_state(latest) if latest else None)

    @property
    def step(self) -> int:
        """Step of the checkpoint; 0 when there is none."""
        return self.state.step if self.state else 0
