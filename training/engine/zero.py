"""The engine for `parallel.pipeline: 1`: DeepSpeed's ZeRO engine around the whole model and its loss."""

from collections.abc import Container, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.explicit import References
from model.loss import HeadLoss
from model.memory.interface import memories
from model.network import LanguageModel
from training.batches import MicroBatch, StepBatch
from training.config import Phase, RunConfig
from training.distributed.topology import Topology
from training.engine.base import Engine
from training.engine.deepspeed_library import register_external_parameter
from training.faults.anomalies import LossGuard


class PlainEngine(Engine):
    """The engine whose ranks all compute every layer."""

    module: "LossModel"

    def __init__(
        self, config: RunConfig, phase: Phase, topology: Topology, loaded_later: Container[str] = frozenset()
    ) -> None:
        super().__init__(config, phase, topology, loaded_later)
        if config.training.zero_stage == 3:
            self._share_weights()

    def _build_module(self) -> nn.Module:
        net = LanguageModel(self.config.model, self.topology.parallel, self.phase.memory)
        net.initialize(self.config.run.seed, self.loaded_later)
        return LossModel(net, self.guard, self.loss)

    def _canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.net.named_parameters()

    def _mpu(self) -> Any:
        return _Groups(self.topology)

    def _forward_backward(self, batch: StepBatch) -> Tensor:
        total = torch.zeros((), device=self.topology.device)
        for micro in batch.micro_batches:
            loss = self.ds(micro.to(self.topology.device))
            total += loss.detach()
            self.ds.backward(loss)
            self.ds.step()
        return self._mean(total, batch)

    def _forward(self, batch: StepBatch) -> Tensor:
        self.module.eval()
        losses = [self.module(micro.to(self.topology.device)) for micro in batch.micro_batches]
        return self._mean(torch.stack(losses).sum(), batch)

    def _mean(self, total: Tensor, batch: StepBatch) -> Tensor:
        """Return the mean over micro-batches and data-parallel ranks, given this rank's sum. Collective."""
        dist.all_reduce(total, group=self.topology.data_parallel_group)
        return total / (len(batch.micro_batches) * self.topology.data_parallel_group.size())

    def _share_weights(self) -> None:
        """Register with ZeRO 3 the weights that are used outside the forward of the module that holds them.

        ZeRO 3 gathers a module's weights only during that module's own forward.
        """
        net = self.module.net
        shared = [net.head.weight, *(p for m in memories(net) for p in m.used_outside_forward())]
        for parameter in shared:
            register_external_parameter(self.module, parameter)


class LossModel(nn.Module):
    """The module that DeepSpeed wraps: `forward` maps a micro-batch to its weighted loss, a scalar tensor."""

    def __init__(self, net: LanguageModel, guard: LossGuard, loss: HeadLoss | None = None) -> None:
        super().__init__()
        self.net, self.guard, self.loss = net, guard, loss or HeadLoss(net.tp)

    def forward(self, micro: MicroBatch) -> Tensor:
        """Return the weighted loss of a micro-batch, a scalar tensor with its graph."""
        net, before, documents = self.net, micro.documents[:, 0], micro.documents[:, 1:]
        begin = net.parallel.segments.rank * micro.ids.size(1)
        references = None
        if net.explicit is not None and micro.references is not None:
            assert micro.reference_lengths is not None
            references = References(
                micro.reference_lengths,
                micro.references,
                documents=micro.reference_document_ids,
                window=net.explicit.references,
            )
        state = net.after(before, begin) if begin else None
        hidden, _ = net.hidden(micro.ids, documents, state, references, micro.changes)
        return self.guard(self.loss(hidden, net.head.weight, micro.labels, micro.weights))


class _Groups:
    """The process groups of a topology under the method names that DeepSpeed's engine calls."""

    def __init__(self, topology: Topology) -> None:
        self._tensor, self._data = topology.mesh.get_group("tensor"), topology.data_parallel_group
        for kind in ("model", "tensor_model"):
            setattr(self, f"get_{kind}_parallel_rank", self._tensor.rank)
            setattr(self, f"get_{kind}_parallel_world_size", self._tensor.size)
            setattr(self, f"get_{kind}_parallel_group", lambda: self._tensor)
        self.get_data_parallel_rank = self._data.rank
        self.get_data_parallel_world_size = self._data.size
        self.get_data_parallel_group = lambda: self._data
