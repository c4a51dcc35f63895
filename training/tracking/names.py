"""Names in MLflow of the values in `metrics.jsonl`, used by training and by a later sync."""

import re
from collections.abc import Mapping
from typing import Any

LOSS = "train/loss"
DISCARDED = "train/discarded_loss"  # loss of steps that a return to a checkpoint undid
PASSED_OVER = "train/passed_over"  # 1 at a step that is skipped

_STEP = {
    "loss": LOSS,
    "tokens": "train/tokens",
    "grad_norm": "optim/grad_norm",
    "lr": "optim/lr",
    "tokens_per_second": "throughput/tokens_per_second",
    "mfu": "throughput/mfu",
    "data_wait": "data/wait",
    "goodput": "throughput/goodput",
}
_EVALUATION = {
    "valid_loss": "eval/valid_loss",
    "ablated_valid_loss": "eval/ablated_valid_loss",
    "tokens": "eval/tokens",
}


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return MLflow's names and the values of a line, of a step or an evaluation, without what was not measured."""
    names = _EVALUATION if "valid_loss" in line else _STEP
    found = {name: line[field] for field, name in names.items() if line.get(field) is not None}
    found |= {f"memory/gate_{gate}": value for gate, value in line.get("gates", {}).items() if value is not None}
    return {name: float(value) for name, value in found.items()}


def safe_key(name: str) -> str:
    """Return `name` with every character replaced that some MLflow store does not accept."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:250] or "_"
