"""What a run does about bad steps: which it leaves out, when it goes back, when it stops."""

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
AMONG = 100  # steps over which those without a finite loss are counted
HISTORY, ENOUGH = 50, 10  # losses whose median is the usual one, and how many make a median


class LossGuard:
    """Watches every micro-batch's loss; one that is not finite makes all its gradients so.

    DeepSpeed leaves out an update whose global gradient norm is not finite, on all ranks and all stages alike, so
    neither weights nor moments ever see such a step.
    """

    def __init__(self) -> None:
        self._finite: list[Tensor] = []

    def begin(self) -> None:
        """A new step."""
        self._finite.clear()

    def __call__(self, loss: Tensor) -> Tensor:
        self._finite.append(torch.isfinite(loss.detach()))
        return _PoisonedUnlessFinite.apply(loss) if loss.requires_grad else loss

    def bad(self) -> list[int]:
        """Numbers of this rank's micro-batches of the step whose loss was not finite."""
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
    """What all ranks agreed on after a step."""

    finite: bool
    spike: bool
    stop: int  # number of a signal that reached one of them, else 0


class AnomalyDetector:
    """Looks at every step's loss; its answers are the same on all ranks."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.rollbacks = 0
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._bad_steps: deque[int] = deque()

    def new_phase(self) -> None:
        """Clear the loss history: the previous phase's median does not apply to this one."""
        self._losses.clear()

    def decide(self, step: int, loss: float, grad_norm: float, stop: int) -> StepDecision:
        """Agree on the step just taken; `stop` is the number of a signal that came, else 0.  Collective."""
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
        return len(self._bad_steps) > self.config.nonfinite_steps

    def _is_spike(self, loss: float) -> bool:
        factor = self.config.spike_factor
        if factor is None or len(self._losses) < ENOUGH:
            return False
        return loss > factor * statistics.median(self._losses)

    def roll_back(self, step: int, back_to: int) -> list[int]:
        """The steps to pass over after a spike at `step`.  Raises `TrainingError` when it went back too often."""
        self.rollbacks += 1
        if self.rollbacks > self.config.rollbacks:
            raise TrainingError(
                f"step {step}: the loss spiked again after {self.config.rollbacks} returns to a checkpoint; lower the "
                "learning rate in a new run.name, or raise faults.spike_factor or faults.rollbacks"
            )
        self._losses.clear()
        return [s for s in range(step - self.config.spike_skips + 1, step + 1) if s > back_to]


def read_skipped(run_folder: Path) -> list[int]:
    """Steps that earlier lives of the run decided to pass over."""
    path = run_folder / SKIPPED_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return sorted({int(step) for step in found})
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); delete it to train on every step") from None


def write_skipped(run_folder: Path, steps: list[int]) -> None:
    """Remember the steps for every later life."""
    write_text(run_folder / SKIPPED_FILE, json.dumps({"steps": sorted(steps)}) + "\n")
