"""The JSON part of a checkpoint: `state.json`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint.manifest import STATE_FILE
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
    """Read the JSON part of a checkpoint.  Raises `ConfigError` when the folder is not a checkpoint."""
    path = checkpoint / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint}: has no readable {STATE_FILE} ({error}); pass a folder like RUN/checkpoints/step-XXXXXXXX"
        ) from None
