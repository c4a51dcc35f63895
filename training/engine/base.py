"""One phase's model, optimizer and DeepSpeed engine on a rank, behind `train_step` and `evaluate`.

All subclasses give a parameter the same canonical name, so checkpoints do not depend on the engine.
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
from model.memory.interface import GATES, ablated, memories
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
    """Result of one optimizer step, equal on all ranks.

    loss: nats per token over the global batch; grad_norm: global norm before clipping; gates: mean opening (0..1) of
    each memory gate over layers, micro-batches and ranks.
    """

    loss: float
    grad_norm: float
    gates: dict[str, float]


class Engine(ABC):
    """One phase's model, optimizer and DeepSpeed engine on this rank. Building one is collective.

    loaded_later: names of parameters that a checkpoint sets next; no initial values are drawn for them.
    """

    def __init__(
        self, config: RunConfig, phase: Phase, topology: Topology, loaded_later: Container[str] = frozenset()
    ) -> None:
        self.config, self.phase, self.topology, self.loaded_later = config, phase, topology, loaded_later
        # DeepSpeed would otherwise compile this kernel, which only inference uses, for a minute on the first CPU start
        __compatible_ops__["deepspeed_shm_comm"] = False
        samples = phase.tokens_per_step // config.data.sequence_length
        self.micro_batches = samples // (config.training.micro_batch_size * topology.data_size)
        self.guard = LossGuard()
        choose_products(config, phase, topology)
        choose_attention(config, phase, topology)
        self.compiled = compiles(config, phase, topology)
        self.loss = HeadLoss(topology.tensor, self.compiled)
        deepspeed.init_distributed(auto_mpi_discovery=False)  # takes over the process group that topology.py started
        self.module = self._build_module()
        if self.compiled:
            compile_layers(self.module)
        self.parameters: dict[str, nn.Parameter] = dict(self._canonical_parameters())
        # shapes on this tensor-parallel rank, kept because ZeRO 3 replaces the parameters with empty ones
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        # fp32 weights, moments and step counts of parameters that this phase does not train; they are saved again
        # unchanged. One data-parallel rank keeps each tensor; the others have None.
        self._untrained: dict[str, Tensor | None] = {}
        self._untrained_steps: dict[str, float] = {}
        if phase.trains == "memory":
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(is_memory_name(name))
        training = config.training
        # fused: one kernel updates a whole group; offloaded state is updated on the CPU, where it does not apply
        fused = True if topology.device.type == "cuda" and training.offload == "none" else None
        self.optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=training.betas, eps=training.eps, fused=fused)
        with contextlib.redirect_stdout(io.StringIO()) as said:  # DeepSpeed prints a memory table in bf16
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
        """Run forward and backward of all micro-batches and the optimizer step. Collective.

        Returns the mean loss over micro-batches and data-parallel ranks, a scalar tensor.
        """

    @abstractmethod
    def _forward(self, batch: StepBatch) -> Tensor:
        """Return the mean loss over micro-batches and data-parallel ranks, a scalar tensor. Collective."""

    def _mpu(self) -> Any:
        """Return DeepSpeed's view of the process groups; None where its engine brings its own."""
        return None

    def train_step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """Take one optimizer step on the global batch, of which `batch` is this rank's share. Collective."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for memory in memories(self.module):
            memory.take_gates()  # drop the gate values that evaluations recorded
        self.guard.begin()
        loss = self._forward_backward(self._normalise_by_global_tokens(batch))
        return StepResult(float(loss), float(self.ds.get_global_grad_norm() or 0.0), self._reduce_gate_means())

    def evaluate(self, batch: StepBatch, ablate_memory: bool = False) -> float:
        """Return the loss in nats per token over all ranks' batches, equal on all ranks. Collective.

        ablate_memory: every read finds the initial memory, and no token sees a reference.
        """
        context = ablated(self.module) if ablate_memory else contextlib.nullcontext()
        if ablate_memory:
            batch = StepBatch([micro.without_references() for micro in batch.micro_batches])
        with context, torch.no_grad():
            loss = float(self._forward(self._normalise_by_global_tokens(batch)))
        self.module.train()
        return loss

    def _normalise_by_global_tokens(self, batch: StepBatch) -> StepBatch:
        """Return `batch` with weights scaled to the global number of valid labels. Collective.

        The mean loss over micro-batches and data-parallel ranks is then the sum over all valid labels divided by their
        global number. Every token then counts the same, however many valid labels its micro-batch has.
        """
        valid = torch.tensor(batch.valid, dtype=torch.float64, device=self.topology.device)
        dist.all_reduce(valid, group=self.topology.data_parallel_group)
        scale = len(batch.micro_batches) * self.topology.data_parallel_group.size() / max(1.0, float(valid))
        return StepBatch([micro.scaled(scale) for micro in batch.micro_batches])

    def _reduce_gate_means(self) -> dict[str, float]:
        """Return the mean of each gate over all layers, micro-batches and ranks; empty without memory. Collective."""
        if not self.phase.memory:
            return {}
        local = [memory.take_gates() for memory in memories(self.module)]
        found = [[gates[name] for gates in local if name in gates] for name in GATES]
        sums = torch.zeros(len(GATES), 2, device=self.topology.device)
        for row, gates in zip(sums, found, strict=True):
            if gates:  # summed on the device, so that only the total is waited for
                row.copy_(torch.stack((torch.stack(gates).sum(), row.new_tensor(len(gates)))))
        dist.all_reduce(sums)
        return {name: total / count for name, (total, count) in zip(GATES, sums.tolist(), strict=True) if count}

    def _groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups, by family (backbone, memory) and by whether weight decay applies.

        The memory has groups of its own because its step count starts in the phase that switches it on.
        """
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
            # each gradient is added to the fp32 sum as soon as it is computed, not after the backward pass
            "bf16": {"enabled": training.precision == "bf16", "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 10**9,
            "timers": {"throughput": {"enabled": False}},  # DeepSpeed's timer synchronises with the device
            "pipeline": {"use_reentrant": False, "pipe_partitioned": False, "grad_partitioned": False},
        }

    def _zero_config(self) -> dict[str, Any]:
        training, size = self.config.training, self.config.model.hidden_size
        # DeepSpeed allocates a whole bucket, by default of 5e8 elements, even for a small model
        bucket = min(5 * 10**8, sum(shape.numel() for shape in self.shapes.values()))
        zero: dict[str, Any] = {"stage": training.zero_stage, "reduce_bucket_size": bucket}
        if training.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = 10 * size  # norms and gates are not partitioned
            zero["stage3_prefetch_bucket_size"] = 10 * size * size
        if training.offload != "none":
            pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
            zero |= {"offload_optimizer": pinned} | ({"offload_param": pinned} if training.offload == "all" else {})
        return zero

    # -- state: what a checkpoint holds ---------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that this phase updates, by canonical name."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def read_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (`name` or `name/moment`, fp32 tensor of this tensor-parallel rank's shape) for all parameters.

        Collective over the data-parallel ranks; all of them must consume the iterator together.
        """
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
        """Return the untrained tensor `key`, which one data-parallel rank keeps. Collective over these ranks."""
        group, value = self.topology.data_parallel_group, self._untrained[key]
        if value is None:
            value = torch.empty(self.shapes[key.partition("/")[0]], device=self.topology.device)
        dist.broadcast(value, group=group, group_src=index % group.size())
        return value

    def own_state(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield (key, start, values) for every range of a flattened fp32 tensor that this data-parallel rank keeps.

        key: `name` or `name/moment`; start: index of the first element in the flattened tensor of this tensor-parallel
        rank; values: fp32 [n], the optimizer's own memory, so copy them before the next update. Collective over the
        data-parallel ranks with ZeRO 3 and untrained parameters.
        """
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
        """Call `action` once, right before weights or moments next change; only the optimizer step changes them."""
        self._before_update.append(action)

    def _about_to_update(self) -> None:
        while self._before_update:
            self._before_update.pop()()

    def memory_to_load(self, stored: Container[str], moments: bool) -> Iterator[tuple[str, int, Tensor]]:
        """Yield (key, start, values) as `own_state` does, for the keys in `stored`; the caller fills `values`.

        moments: also AdamW's moments. Call `take_loaded` once all values are filled.
        """
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
        """Copy the values filled through `memory_to_load` into the weights that the model computes with.

        Collective over the data-parallel ranks.
        """
        self.state.update_weights()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in self._untrained:
                self.state.set_weight(parameter, self._untrained_value(name, index))

    @torch.no_grad()
    def write_weights(self, values: dict[str, Tensor]) -> None:
        """Set the weights named in `values`, whose tensors have this tensor-parallel rank's shapes.

        Other weights keep their values. Collective over the data-parallel ranks.
        """
        self._about_to_update()
        rank, size = self.topology.data_parallel_group.rank(), self.topology.data_parallel_group.size()
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in values:
                self.state.set_weight(parameter, values[name])
                if not parameter.requires_grad:
                    self._untrained[name] = values[name].clone() if index % size == rank else None

    def optimizer_steps(self) -> dict[str, float]:
        """Return the number of AdamW steps of each family (`backbone`, `memory`) of all stages. Collective."""
        own = self._untrained_steps | {name: float(state["step"]) for name, state in self.state.partitions()}
        everywhere: list[Any] = [None] * self.topology.info.world_size
        dist.all_gather_object(everywhere, own)
        return {name: steps for rank in everywhere for name, steps in rank.items()}

    def set_optimizer_steps(self, steps: dict[str, float]) -> None:
        """Set AdamW's step counts, on which its bias correction depends; families that `steps` lacks begin at 0."""
        trained = {name for name, _ in self.state.partitions()}
        self._untrained_steps = {name: value for name, value in steps.items() if name not in trained}
        for name, state in self.state.partitions():
            state["step"].fill_(steps.get(name, 0.0))

    def counts(self) -> dict[str, int]:
        """Return how many elements this rank holds of parameters and optimizer state, of backbone and memory."""
        out = {"parameters": 0, "memory_parameters": 0, "optimizer_state": 0, "memory_optimizer_state": 0}
        for name, parameter in self.parameters.items():
            out["memory_parameters" if is_memory_name(name) else "parameters"] += self.state.held(parameter)
        for name, state in self.state.partitions():
            key = "memory_optimizer_state" if name == "memory" else "optimizer_state"
            out[key] += sum(state[moment].numel() for moment in MOMENTS)
        return out

    def close(self) -> None:
        """Free DeepSpeed's memory, so that the next phase's engine can be built."""
        self._about_to_update()
        self.ds.destroy()
        if self.compiled:  # drop the compiled graphs: the next phase builds new layers
            torch.compiler.reset()
