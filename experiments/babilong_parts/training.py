"""One small model trained on rows of exercises, on a CPU or, captured as a CUDA graph, on a GPU.

A small model on a GPU is bound by kernel launches.  A captured step is one launch, and several models train side by
side on streams of their own.  B rows of a step, L tokens of a row, A answer tokens of a step (padded), V vocabulary.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.files import replacing
from model.memory.interface import memories
from model.network import LanguageModel

CAPACITY = 4  # at most one token in so many is an answer


@dataclass(frozen=True)
class Recipe:
    """peak: learning rate after `warmup` steps; it stays until the last `decay` share, then falls to a twentieth."""

    peak: float
    steps: int
    warmup: int = 200
    decay: float = 0.25
    weight_decay: float = 0.01
    clip: float = 1.0

    def learning_rate(self, step: int) -> float:
        """For the update that makes step `step`, counted from 0."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.peak * min(1.0, (step + 1) / self.warmup, max(0.05, left))


@dataclass(frozen=True)
class Rows:
    """A step's rows. tokens: int64 [B, L + 1]; documents: int64 [B, L]; answers: bool [B, L + 1]."""

    tokens: np.ndarray
    documents: np.ndarray
    answers: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """int64, flat positions in [B, L] whose next token is one of an answer."""
        return np.flatnonzero(self.answers[:, 1:])


def save_weights(net: LanguageModel, path: Path) -> None:
    """Parameters by name, as safetensors."""
    save_file({name: parameter.detach() for name, parameter in net.named_parameters()}, path)


@torch.no_grad()
def load_weights(net: LanguageModel, path: Path) -> None:
    """Set every parameter to what `save_weights` wrote.  Raises `KeyError` where one is missing."""
    found = load_file(path)
    for name, parameter in net.named_parameters():
        parameter.copy_(found[name])


class Learner:
    """A model, its optimizer, and what a step needs on the device.  One process, one device."""

    def __init__(self, net: LanguageModel, recipe: Recipe, shape: tuple[int, int], device: torch.device) -> None:
        self.net, self.recipe, self.device, self.step = net.to(device), recipe, device, 0
        batch, length = shape
        self.capacity = batch * length // CAPACITY
        self.inputs = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.documents = torch.zeros_like(self.inputs)
        self.places = torch.zeros(self.capacity, dtype=torch.int64, device=device)
        self.labels = torch.zeros_like(self.places)
        self.weights = torch.zeros(self.capacity, device=device)
        self.sums = torch.zeros(3, device=device)  # loss, right answers, answers since the last `take`
        decayed = [p for p in net.parameters() if p.dim() > 1]
        others = [p for p in net.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        on_gpu = device.type == "cuda"
        rate = torch.tensor(recipe.peak, device=device) if on_gpu else recipe.peak
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), capturable=on_gpu, fused=True)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device) if on_gpu else None

    def train(self, rows: Rows) -> None:
        """One update."""
        self._give(rows)
        if self.graph is None:
            self._update()
        else:
            self.graph.replay()
        self.step += 1

    def capture(self, rows: Rows, warm: int = 3) -> None:
        """Record a step as a CUDA graph, after `warm` real ones.  Weights and moments are as if no step was made."""
        assert self.stream is not None
        kept = [p.detach().clone() for p in self.net.parameters()]
        with torch.cuda.stream(self.stream):
            self._give(rows)
            for _ in range(warm):
                self._update()
            self.stream.synchronize()
            for memory in memories(self.net):
                memory.take_gates()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self._update()
            self._restore(kept)
            self.stream.synchronize()

    @torch.no_grad()
    def _restore(self, kept: list[Tensor]) -> None:
        for parameter, value in zip(self.net.parameters(), kept, strict=True):
            parameter.copy_(value)
            for moment in self.optimizer.state[parameter].values():
                moment.zero_()
        self.sums.zero_()

    def _give(self, rows: Rows) -> None:
        places = rows.places[: self.capacity]
        labels = rows.tokens[:, 1:].reshape(-1)[places]
        padding = self.capacity - len(places)
        weights = np.full(self.capacity, 1.0 / max(1, len(places)), np.float32)
        weights[len(places) :] = 0.0
        for target, value in (
            (self.inputs, rows.tokens[:, :-1]),
            (self.documents, rows.documents),
            (self.places, np.pad(places, (0, padding))),
            (self.labels, np.pad(labels, (0, padding))),
            (self.weights, weights),
        ):
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)), non_blocking=True)
        rate = self.recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _update(self) -> None:
        self.optimizer.zero_grad(set_to_none=self.device.type == "cpu")
        hidden, _ = self.net.hidden(self.inputs, self.documents)
        logits = self.net.head.logits(hidden.flatten(0, 1).index_select(0, self.places)).float()  # [A, V]
        loss = (F.cross_entropy(logits, self.labels, reduction="none") * self.weights).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            counted = self.weights > 0
            right = (logits.argmax(-1) == self.labels) & counted
            self.sums += torch.stack((loss.detach(), right.sum().float(), counted.sum().float()))

    def timed(self, rows: Rows, steps: int = 20) -> dict[str, float]:
        """Milliseconds of a captured step that has the device for itself; weights and moments stay as they are."""
        assert self.graph is not None and self.stream is not None
        kept = [p.detach().clone() for p in self.net.parameters()]
        with torch.cuda.stream(self.stream):
            self._give(rows)
            self.stream.synchronize()
            began = time.perf_counter()
            for _ in range(steps):
                self.graph.replay()
            self.stream.synchronize()
            took = (time.perf_counter() - began) / steps
            self._restore(kept)
            self.stream.synchronize()
        return {"ms a step alone": 1000 * took}

    def take(self, steps: int) -> tuple[float, float]:
        """Mean loss and share of answer tokens that were right over the last `steps` steps.  Waits for the device."""
        loss, right, count = self.sums.tolist()
        self.sums.zero_()
        return loss / max(1, steps), right / max(1.0, count)

    def save(self, path: Path) -> None:
        """Weights, moments and the step, written aside and renamed."""
        state = {"step": self.step, "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on where `save` was called."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
