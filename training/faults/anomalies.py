"""Detects non-finite steps and loss spikes; decides when an update is left out, undone, or the run is stopped."""

import json
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.files import write_text
from training.config import FaultConfig
from training.errors import TrainingError

SKIPPED_FILE = "skipped.json"
AMONG = 100  # non-finite steps are counted over so many consecutive steps
HISTORY, ENOUGH = 50, 10  # a spike is measured against the median of the last 50 losses, of at least 10


class LossGuard:
    """Records whether each micro-batch's loss is finite, and turns the gradients of a non-finite loss into NaN.

    DeepSpeed skips an update whose global gradient norm is not finite, on all ranks and pipeline stages alike, so a
    non-finite loss never reaches weights or moments.
    """

    def __init__(self) -> None:
        self._finite: list[Tensor] = []

    def begin(self) -> None:
        """Forget the micro-batches of the previous step."""
        self._finite.clear()

    def __call__(self, loss: Tensor) -> Tensor:
        """Return `loss` unchanged; its backward gives NaN when the loss is not finite.  loss: a scalar tensor."""
        self._finite.append(torch.isfinite(loss.detach()))
        return _PoisonedUnlessFinite.apply(loss) if loss.requires_grad else loss

    def bad(self) -> list[int]:
        """Return the indices of this rank's micro-batches of the step whose loss was not finite."""
        return [index for index, finite in enumerate(self._finite) if not bool(finite)]


class _PoisonedUnlessFinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, loss: Tensor) -> Tensor:
        ctx.save_for_backward(torch.isfinite(loss))
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (finite,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.where(finite, gradient, torch.full_like(gradient, math.nan))


@dataclass(frozen=True)
class StepDecision:
    """What all ranks decided after a step; equal on all ranks."""

    finite: bool  # loss and gradient norm
    spike: bool
    stop: int  # number of a signal that reached any rank, else 0


class AnomalyDetector:
    """Decides after every step whether it was finite or a spike; all ranks get the same answer."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.rollbacks = 0
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._bad_steps: deque[int] = deque()

    def new_phase(self) -> None:
        """Clear the loss history: the previous phase's median does not apply to this one."""
        self._losses.clear()

    def decide(self, step: int, loss: float, grad_norm: float, stop: int) -> StepDecision:
        """Combine what all ranks know of the step just taken into one decision. Collective.

        Args:
            step: number of the step, from 1.
            loss: mean loss of the step, nats per token.
            grad_norm: global gradient norm.
            stop: number of a signal that this rank received, else 0.
        """
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        flags = torch.tensor([not finite, finite and self._is_spike(loss), stop], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        bad, spike, stop = (int(flag) for flag in flags)
        if bad:
            self._bad_steps.append(step)
        elif not spike:
            self._losses.append(loss)
        while self._bad_steps and self._bad_steps[0] <= step - AMONG:
            self._bad_steps.popleft()
        return StepDecision(not bad, bool(spike and not bad), stop)

    @property
    def too_many_bad(self) -> bool:
        """Whether more than `faults.nonfinite_steps` of the last 100 steps were not finite."""
        return len(self._bad_steps) > self.config.nonfinite_steps

    def _is_spike(self, loss: float) -> bool:
        factor = self.config.spike_factor
        if factor is None or len(self._losses) < ENOUGH:
            return False
        return loss > factor * statistics.median(self._losses)

    def roll_back(self, step: int, back_to: int) -> list[int]:
        """Return the steps to pass over after a spike at `step` and a return to the checkpoint of step `back_to`.

        Raises `TrainingError` when the run has already gone back `faults.rollbacks` times.
        """
        self.rollbacks += 1
        if self.rollbacks > self.config.rollbacks:
            raise TrainingError(
                f"step {step}: the loss spiked again after {self.config.rollbacks} returns to a checkpoint; lower the "
                "learning rate in a new run.name, or raise faults.spike_factor or faults.rollbacks"
            )
        self._losses.clear()
        return [s for s in range(step - self.config.spike_skips + 1, step + 1) if s > back_to]


def read_skipped(run_folder: Path) -> list[int]:
    """Return the steps that earlier attempts of the run decided to pass over, in ascending order.

    Raises `TrainingError` when the file cannot be read.
    """
    path = run_folder / SKIPPED_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return sorted({int(step) for step in found})
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); delete it to train on every step") from None


def write_skipped(run_folder: Path, steps: list[int]) -> None:
    """Write the steps to pass over into the run's folder, for all later attempts."""
    write_text(run_folder / SKIPPED_FILE, json.dumps({"steps": sorted(steps)}) + "\n")
