"""Access to weights and AdamW's moments as ZeRO keeps them, by parameter."""

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
    """State of ZeRO 1 and 2: every rank has whole weights; fp32 copies and moments are partitioned over the ranks."""

    def __init__(self, ds: Any) -> None:
        self.zero, self.optimizer = ds.optimizer, ds.optimizer.optimizer
        # create AdamW's zero state now instead of in its first step, so that it can be loaded into and counted
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
        """Yield (family, AdamW's state) for every flat partition on this rank; family is `backbone` or `memory`."""
        return ((name, self.optimizer.state[partition]) for name, partition in self._partitions())

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight in the precision that the model computes with. Collective with ZeRO 3."""
        return parameter.detach()

    def held(self, parameter: nn.Parameter) -> int:
        """Return how many elements of the parameter this rank holds."""
        return parameter.numel()

    def read(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """Return the whole fp32 weight, or the whole `moment`. Collective over the data-parallel ranks."""
        if moment is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, moment)

    def own(self, parameter: nn.Parameter, moment: str | None = None) -> tuple[int, Tensor]:
        """Return (start, values): this rank's range of the flattened fp32 weight, or of `moment`.

        values: fp32 [n], the optimizer's own memory; empty where this rank has no part of the parameter.
        """
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, torch.empty(0)
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the whole weight and its fp32 copy. Collective over the data-parallel ranks."""
        parameter.copy_(value)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, value)

    def update_weights(self) -> None:
        """Copy the fp32 weights into the weights that the model computes with. Collective over data parallel."""
        self.zero.update_lp_params()


class PartitionedState(FlatState):
    """State of ZeRO 3, where every rank has only a slice of each weight."""

    def _link(self) -> None:
        """Do nothing: ZeRO 3 links parameters to their slices when it is built."""

    def _partitions(self) -> Iterator[tuple[str, Tensor]]:
        groups = self.optimizer.param_groups
        for index, partition in enumerate(self.zero.fp32_partitioned_groups_flat):
            yield groups[self.zero.sub_group_to_group_id[index]]["family"], partition

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight, gathered from its slices. Collective over the data-parallel ranks."""
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def held(self, parameter: nn.Parameter) -> int:
        """Return how many elements this rank has of the parameter: its slice."""
        return parameter.ds_tensor.numel()  # type: ignore[attr-defined]

    def own(self, parameter: nn.Parameter, moment: str | None = None) -> tuple[int, Tensor]:
        """Return (start, values) of this rank's slice, as `FlatState.own`."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * self.zero.dp_process_group.rank()
        # private; the public getters of deepspeed.utils would first copy offloaded values to the GPU
        values, _ = self.zero._get_fp32_opt_state_partition(parameter, True, moment)
        return start, values[: max(0, min(size, parameter.ds_numel - start))]  # type: ignore[attr-defined]

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the whole weight and this rank's fp32 slice. Collective over the data-parallel ranks."""
        with GatheredParameters([parameter], modifier_rank=0):  # the weight is partitioned again at the block's end
            parameter.copy_(value)
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, self._slice(parameter, value))

    def update_weights(self) -> None:
        """Copy the fp32 slices into the weights' slices. Collective over the data-parallel ranks."""
        zero = self.zero  # private methods, called as DeepSpeed's step calls them; persistent weights are gathered
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return this rank's slice of the flattened `value`, zero-padded to the length that all slices have.

        DeepSpeed's own setter fails where the last slice is shorter.
        """
        size, group = parameter.ds_tensor.numel(), self.zero.dp_process_group  # type: ignore[attr-defined]
        filled = F.pad(value.flatten(), (0, size * group.size() - value.numel()))
        return filled.narrow(0, size * group.rank(), size)


def family(name: str) -> str:
    """Return the optimizer-state family, `memory` or `backbone`, of a canonical parameter name."""
    return "memory" if is_memory_name(name) else "backbone"


def moment_keys(name: str) -> tuple[str, ...]:
    """Return the checkpoint keys of a parameter's moments, `name/exp_avg` and `name/exp_avg_sq`."""
    return tuple(f"{name}/{moment}" for moment in MOMENTS)


def decays(name: str, parameter: nn.Parameter, undecayed: Collection[str] = ()) -> bool:
    """Return whether weight decay applies: only to matrices, and not to the memory's `undecayed` parameters."""
    return parameter.dim() == 2 and name.rpartition(".memory.")[2] not in undecayed
