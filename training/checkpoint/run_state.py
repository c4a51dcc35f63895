"""What a checkpoint says beside its tensors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint.manifest import STATE_FILE
from training.errors import ConfigError


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
    skipped: list[int] = field(default_factory=list)  # steps passed over without an update
    tokenizer: str = ""  # fingerprint of the tokenizer's file; empty in checkpoints from before it was kept


def read_run_state(checkpoint: Path) -> RunState:
    """The JSON side of a checkpoint; raises `ConfigError` when it is none."""
    path = checkpoint / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint}: has no readable {STATE_FILE} ({error}); pass a folder like RUN/checkpoints/step-XXXXXXXX"
        ) from None
