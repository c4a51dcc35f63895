"""Weights and AdamW's moments as ZeRO keeps them, under the canonical names of parameters."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network import is_memory_name
from training.engine.deepspeed_library import (
    GatheredParameters,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)

MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatState:
    """The optimizer's state of ZeRO 1 and 2: weights whole on every rank, flat fp32 copies and moments shared out."""

    def __init__(self, ds: Any) -> None:
        self.zero, self.optimizer = ds.optimizer, ds.optimizer.optimizer
        # AdamW's state now, zero, as its first step would make it: so it can be loaded into, and counted
        for _, partition in self._partitions():
            state = self.optimizer.state[partition]
            fused = any(group["fused"] for group in self.optimizer.param_groups)
            state.setdefault("step", torch.zeros((), device=partition.device if fused else "cpu"))
            for moment in MOMENTS:
                state.setdefault(moment, torch.zeros_like(partition))
        self._link()

    def _link(self) -> None:
        self.zero._lazy_init_hp_params_optimizer_state()  # private; links parameters to their slice of the state

    def _partitions(self) -> Iterator[tuple[str, Tensor]]:
        return ((group["family"], part) for group in self.optimizer.param_groups for part in group["params"])

    def partitions(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """AdamW's state of every flat partition on this rank, by the family of its parameters."""
        return ((name, self.optimizer.state[partition]) for name, partition in self._partitions())

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The weight as it is computed with, whole."""
        return parameter.detach()

    def held(self, parameter: nn.Parameter) -> int:
        """Numbers of the parameter that stay on this rank."""
        return parameter.numel()

    def read(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """fp32 weight or moment, whole.  Collective over the data-parallel ranks."""
        if moment is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, moment)

    def own(self, parameter: nn.Parameter, moment: str | None = None) -> tuple[int, Tensor]:
        """This rank's range of the flattened fp32 weight or moment: where it begins, and its values."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, torch.empty(0)
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.copy_(value)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, value)

    def update_weights(self) -> None:
        """Compute with the fp32 weights as they now are. Collective over the data-parallel ranks."""
        self.zero.update_lp_params()


class PartitionedState(FlatState):
    """The same of ZeRO 3, which leaves every rank a slice of each weight."""

    def _link(self) -> None:
        """Parameters know their slice from the start."""

    def _partitions(self) -> Iterator[tuple[str, Tensor]]:
        groups = self.optimizer.param_groups
        for index, partition in enumerate(self.zero.fp32_partitioned_groups_flat):
            yield groups[self.zero.sub_group_to_group_id[index]]["family"], partition

    def weight(self, parameter: nn.Parameter) -> Tensor:
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def held(self, parameter: nn.Parameter) -> int:
        return parameter.ds_tensor.numel()  # type: ignore[attr-defined]

    def own(self, parameter: nn.Parameter, moment: str | None = None) -> tuple[int, Tensor]:
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * self.zero.dp_process_group.rank()
        # private; the getters of deepspeed.utils bring what is offloaded to the GPU first
        values, _ = self.zero._get_fp32_opt_state_partition(parameter, True, moment)
        return start, values[: max(0, min(size, parameter.ds_numel - start))]  # type: ignore[attr-defined]

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        with GatheredParameters([parameter], modifier_rank=0):  # kept as slices again when it leaves
            parameter.copy_(value)
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, self._slice(parameter, value))

    def update_weights(self) -> None:
        zero = self.zero  # private, as its own step does it; weights that stay whole are gathered again
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a whole value, the last one filled up: DeepSpeed's own setter fails where it is short."""
        size, group = parameter.ds_tensor.numel(), self.zero.dp_process_group  # type: ignore[attr-defined]
        filled = F.pad(value.flatten(), (0, size * group.size() - value.numel()))
        return filled.narrow(0, size * group.rank(), size)


def family(name: str) -> str:
    """The optimizer-state family of a canonical parameter name."""
    return "memory" if is_memory_name(name) else "backbone"


def moment_keys(name: str) -> tuple[str, ...]:
    """Under which a parameter's optimizer state is kept."""
    return tuple(f"{name}/{moment}" for moment in MOMENTS)


def decays(name: str, parameter: nn.Parameter, undecayed: Collection[str] = ()) -> bool:
    """Whether weight decay applies: to matrices, but not to norms, biases, scales and the memory's `undecayed` ones."""
    return parameter.dim() == 2 and name.rpartition(".memory.")[2] not in undecayed
