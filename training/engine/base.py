"""One phase's model, optimizer and DeepSpeed engine on a rank, behind `train_step` and `evaluate`.

Subclasses hold parameters under the same canonical names, which is all that checkpoints and tests know of them.
"""

import contextlib
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.loss import HeadLoss
from model.memory.interface import ablated, memories
from model.network import is_memory_name
from training.batches import StepBatch
from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine.compilation import choose_attention, compile_layers, compiles
from training.engine.deepspeed_library import __compatible_ops__, deepspeed
from training.engine.optimizer_state import MOMENTS, FlatState, PartitionedState, decays, family, moment_keys
from training.engine.products import choose_products
from training.faults.anomalies import LossGuard

log = logging.getLogger("memtrain")


@dataclass(frozen=True)
class StepResult:
    """loss: nats per token over the global batch; grad_norm: before clipping; gates: means over layers."""

    loss: float
    grad_norm: float
    gates: dict[str, float]


class Engine(ABC):
    """One phase's model, optimizer and DeepSpeed engine on this rank.

    loaded_later: names of parameters that are loaded next, so that no initial value is drawn for them.
    """

    def __init__(
        self, config: RunConfig, phase: Phase, topology: Topology, loaded_later: Container[str] = frozenset()
    ) -> None:
        self.config, self.phase, self.topology, self.loaded_later = config, phase, topology, loaded_later
        # a kernel for inference that DeepSpeed would otherwise compile for a minute on the first CPU start
        __compatible_ops__["deepspeed_shm_comm"] = False
        samples = phase.tokens_per_step // config.data.sequence_length
        self.micro_batches = samples // (config.training.micro_batch_size * topology.data_size)
        self.guard = LossGuard()
        choose_products(config, phase, topology)
        choose_attention(config, phase, topology)
        self.compiled = compiles(config, phase, topology)
        self.loss = HeadLoss(topology.tensor, self.compiled)
        deepspeed.init_distributed(auto_mpi_discovery=False)  # adopts the groups that topology.py started
        self.module = self._build_module()
        if self.compiled:
            compile_layers(self.module)
        self.parameters: dict[str, nn.Parameter] = dict(self._canonical_parameters())
        # this tensor-parallel rank's shapes; ZeRO 3 leaves empty parameters where they were
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        # fp32 weights, moments and step counts of what this phase does not train, handed on unchanged.  Each is kept by
        # one of the data-parallel ranks; None: by another.
        self._untrained: dict[str, Tensor | None] = {}
        self._untrained_steps: dict[str, float] = {}
        if phase.trains == "memory":
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(is_memory_name(name))
        training = config.training
        # one kernel a group; what is offloaded is updated on the CPU
        fused = True if topology.device.type == "cuda" and training.offload == "none" else None
        self.optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=training.betas, eps=training.eps, fused=fused)
        with contextlib.redirect_stdout(io.StringIO()) as said:  # its memory table, in bf16
            self.ds, *_ = deepspeed.initialize(
                model=self.module, optimizer=self.optimizer, config=self._deepspeed_config(), mpu=self._mpu()
            )
        log.info("%s", said.getvalue())
        self._before_update: list[Callable[[], object]] = []
        self.optimizer.register_step_pre_hook(lambda *_: self._about_to_update())
        self.state = PartitionedState(self.ds) if config.training.zero_stage == 3 else FlatState(self.ds)

    @abstractmethod
    def _build_module(self) -> nn.Module: ...

    @abstractmethod
    def _canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    @abstractmethod
    def _forward_backward(self, batch: StepBatch) -> Tensor:
        """Gradients of all micro-batches and the optimizer step; the mean loss over micro-batches and ranks."""

    @abstractmethod
    def _forward(self, batch: StepBatch) -> Tensor:
        """The mean loss over micro-batches and data-parallel ranks, without gradients."""

    def _mpu(self) -> Any:
        return None

    def train_step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """One optimizer step on the global batch.  Collective."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for memory in memories(self.module):
            memory.take_gates()  # forget what evaluations left
        self.guard.begin()
        loss = self._forward_backward(self._normalise_by_global_tokens(batch))
        return StepResult(float(loss), float(self.ds.get_global_grad_norm() or 0.0), self._reduce_gate_means())

    def evaluate(self, batch: StepBatch, ablate_memory: bool = False) -> float:
        """Loss in nats per token over all ranks' batches.  Collective."""
        context = ablated(self.module) if ablate_memory else contextlib.nullcontext()
        if ablate_memory:
            batch = StepBatch([micro.without_references() for micro in batch.micro_batches])
        with context, torch.no_grad():
            loss = float(self._forward(self._normalise_by_global_tokens(batch)))
        self.module.train()
        return loss

    def _normalise_by_global_tokens(self, batch: StepBatch) -> StepBatch:
        """Weights such that the mean over micro-batches and data-parallel ranks is the sum over all valid labels,
        divided once by their global number: a token counts the same in whatever micro-batch it is."""
        valid = torch.tensor(batch.valid, dtype=torch.float64, device=self.topology.device)
        dist.all_reduce(valid, group=self.topology.data_parallel_group)
        scale = len(batch.micro_batches) * self.topology.data_parallel_group.size() / max(1.0, float(valid))
        return StepBatch([micro.scaled(scale) for micro in batch.micro_batches])

    def _reduce_gate_means(self) -> dict[str, float]:
        """Gate means over all layers, micro-batches and ranks."""
        if not self.phase.memory:
            return {}
        local = [m.take_gates() for m in memories(self.module)]
        names = ("in", "forget", "out")
        found = [[g[n] for g in local if n in g] for n in names]
        sums = torch.zeros(len(names), 2, device=self.topology.device)
        for row, gates in zip(sums, found, strict=True):
            if gates:  # no value leaves the device before all have been added
                row.copy_(torch.stack((torch.stack(gates).sum(), row.new_tensor(len(gates)))))
        dist.all_reduce(sums)
        return {n: total / count for n, (total, count) in zip(names, sums.tolist(), strict=True) if count}

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups: the memory has its own, so that its optimizer state begins where it does."""
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        seen, undecayed = set[int](), self.config.model.memory.undecayed
        for name, parameter in self.parameters.items():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault((family(name), decays(name, parameter, undecayed)), []).append(parameter)
        weight_decay = self.config.training.weight_decay
        return [
            {"params": params, "weight_decay": weight_decay if decay else 0.0, "family": name}
            for (name, decay), params in sorted(groups.items())
        ]

    def _deepspeed_config(self) -> dict[str, Any]:
        training, group = self.config.training, self.topology.data_parallel_group
        return {
            "train_micro_batch_size_per_gpu": training.micro_batch_size,
            "gradient_accumulation_steps": self.micro_batches,
            "train_batch_size": training.micro_batch_size * self.micro_batches * group.size(),
            "gradient_clipping": training.gradient_clipping,
            "zero_optimization": self._zero_config(),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # gradients go into the fp32 sum as soon as they are there, not after the backward pass
            "bf16": {"enabled": training.precision == "bf16", "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 10**9,
            "timers": {"throughput": {"enabled": False}},  # it waits for the device
            "pipeline": {"use_reentrant": False, "pipe_partitioned": False, "grad_partitioned": False},
        }

    def _zero_config(self) -> dict[str, Any]:
        training, size = self.config.training, self.config.model.hidden_size
        # DeepSpeed allocates whole buckets, 5e8 numbers by default, however small the model
        bucket = min(5 * 10**8, sum(shape.numel() for shape in self.shapes.values()))
        zero: dict[str, Any] = {"stage": training.zero_stage, "reduce_bucket_size": bucket}
        if training.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = 10 * size  # norms and gates stay whole
            zero["stage3_prefetch_bucket_size"] = 10 * size * size
        if training.offload != "none":
            pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
            zero |= {"offload_optimizer": pinned} | ({"offload_param": pinned} if training.offload == "all" else {})
        return zero

    # -- state: what a checkpoint holds ---------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters this phase updates, by canonical name."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def read_state(self) -> Iterator[tuple[str, Tensor]]:
        """`name` and `name/moment` with this tensor-parallel rank's fp32 values.  Collective over data parallel."""
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if not parameter.requires_grad:
                if name not in self._untrained:
                    yield name, self.state.weight(parameter).float()
                for key in (name, *moment_keys(name)):
                    if key in self._untrained:
                        yield key, self._untrained_value(key, index)
                continue
            yield name, self.state.read(parameter)
            for moment in MOMENTS:
                yield f"{name}/{moment}", self.state.read(parameter, moment)

    def _untrained_value(self, key: str, index: int) -> Tensor:
        """Return what one of the data-parallel ranks keeps.  Collective over the data-parallel ranks."""
        group, value = self.topology.data_parallel_group, self._untrained[key]
        if value is None:
            value = torch.empty(self.shapes[key.partition("/")[0]], device=self.topology.device)
        dist.broadcast(value, group=group, group_src=index % group.size())
        return value

    def own_state(self) -> Iterator[tuple[str, int, Tensor]]:
        """`name` and `name/moment` with the range of the flattened fp32 tensor that this replica keeps: where it
        begins, and its values.  They are the optimizer's own memory: copy them before the next update."""
        rank, size = self.topology.data_parallel_group.rank(), self.topology.data_parallel_group.size()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if parameter.requires_grad:
                for key, moment in zip((name, *moment_keys(name)), (None, *MOMENTS), strict=True):
                    yield key, *self.state.own(parameter, moment)
                continue
            weight = None if name in self._untrained else self.state.weight(parameter).float()  # collective in ZeRO 3
            if index % size == rank:
                if weight is not None:
                    yield name, 0, weight.flatten()
                for key in (name, *moment_keys(name)):
                    if (value := self._untrained.get(key)) is not None:
                        yield key, 0, value.flatten()

    def before_next_update(self, action: Callable[[], object]) -> None:
        """Call `action` once, right before weights or moments change; forward and backward do not change them."""
        self._before_update.append(action)

    def _about_to_update(self) -> None:
        while self._before_update:
            self._before_update.pop()()

    def memory_to_load(self, stored: Container[str], moments: bool) -> Iterator[tuple[str, int, Tensor]]:
        """What this replica keeps of `stored`, keys as `read_state` yields them: key, the begin of its range of the
        flattened tensor, and the memory for its values. Call `take_loaded` once it is filled."""
        self._about_to_update()
        rank, size = self.topology.data_parallel_group.rank(), self.topology.data_parallel_group.size()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            found = [(None, name), *zip(MOMENTS, moment_keys(name), strict=True)][: None if moments else 1]
            for moment, key in found:
                if key not in stored:
                    continue
                if parameter.requires_grad:
                    yield key, *self.state.own(parameter, moment)
                elif index % size == rank:
                    kept = self._untrained[key] = torch.empty(self.shapes[name], device=self.topology.device)
                    yield key, 0, kept.view(-1)
                else:
                    self._untrained[key] = None

    @torch.no_grad()
    def take_loaded(self) -> None:
        """Compute with what was loaded into `memory_to_load`. Collective over the data-parallel ranks."""
        self.state.update_weights()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in self._untrained:
                self.state.set_weight(parameter, self._untrained_value(name, index))

    @torch.no_grad()
    def write_weights(self, values: dict[str, Tensor]) -> None:
        """Set weights from this tensor-parallel rank's whole `values`, by name; others stay as they are. Collective
        over the data-parallel ranks."""
        self._about_to_update()
        rank, size = self.topology.data_parallel_group.rank(), self.topology.data_parallel_group.size()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in values:
                self.state.set_weight(parameter, values[name])
                if not parameter.requires_grad:
                    self._untrained[name] = values[name].clone() if index % size == rank else None

    def optimizer_steps(self) -> dict[str, float]:
        """AdamW steps taken by each family of parameters (`backbone`, `memory`), on any stage.  Collective."""
        own = self._untrained_steps | {name: float(state["step"]) for name, state in self.state.partitions()}
        everywhere: list[Any] = [None] * self.topology.info.world_size
        dist.all_gather_object(everywhere, own)
        return {name: steps for rank in everywhere for name, steps in rank.items()}

    def set_optimizer_steps(self, steps: dict[str, float]) -> None:
        """Continue AdamW's bias correction; families not named begin at 0."""
        trained = {name for name, _ in self.state.partitions()}
        self._untrained_steps = {name: value for name, value in steps.items() if name not in trained}
        for name, state in self.state.partitions():
            state["step"].fill_(steps.get(name, 0.0))

    def counts(self) -> dict[str, int]:
        """Numbers held by this rank: parameters and optimizer state, of the backbone and of the memory."""
        out = {"parameters": 0, "memory_parameters": 0, "optimizer_state": 0, "memory_optimizer_state": 0}
        for name, parameter in self.parameters.items():
            out["memory_parameters" if is_memory_name(name) else "parameters"] += self.state.held(parameter)
        for name, state in self.state.partitions():
            key = "memory_optimizer_state" if name == "memory" else "optimizer_state"
            out[key] += sum(state[moment].numel() for moment in MOMENTS)
        return out

    def close(self) -> None:
        """Free what DeepSpeed holds, so that the next phase can be built."""
        self._about_to_update()
        self.ds.destroy()
        if self.compiled:  # the next phase's layers are others
            torch.compiler.reset()
