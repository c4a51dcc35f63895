"""Sharded weights and the copy/reduce mappings of megatron-core. No other file imports megatron-core.

`model/hf/one_rank.py` has the same names without it, for exported folders.
"""

import logging
import warnings

import torch.distributed as dist
from torch import nn

from model.library_imports import without_compiler

logging.getLogger("megatron").addHandler(logging.NullHandler())  # a run's log gets what it says, a console does not
# its fused activations, which it compiles while it is imported, are not used here
with without_compiler(), warnings.catch_warnings(record=True) as announced:
    warnings.simplefilter("default")
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
    from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region as copy_to_region
    from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region as reduce_from_region

for _warning in announced:  # megatron-core says that TransformerEngine and Apex are absent; neither is used
    logging.getLogger("py.warnings").info("%s:%d: %s", _warning.filename, _warning.lineno, _warning.message)

__all__ = ["ColumnWeight", "RowWeight", "TableWeight", "copy_to_region", "reduce_from_region"]

# Weights are allocated on the CPU, also for CUDA, where the engine moves them; initialization.py fills them.
_CONFIG = ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)


class ColumnWeight(ColumnParallelLinear):
    """`weight` [out, in] split by rows, uninitialised."""

    def __init__(self, in_size: int, out_size: int, group: dist.ProcessGroup | None) -> None:
        super().__init__(in_size, out_size, config=_CONFIG, init_method=nn.init.zeros_, bias=False, tp_group=group)


class RowWeight(RowParallelLinear):
    """`weight` [out, in] split by columns, uninitialised."""

    def __init__(self, in_size: int, out_size: int, group: dist.ProcessGroup | None) -> None:
        super().__init__(
            in_size,
            out_size,
            config=_CONFIG,
            init_method=nn.init.zeros_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=group,
        )


class TableWeight(VocabParallelEmbedding):
    """`weight` [V, D] split by rows, uninitialised; this rank has rows vocab_start_index..vocab_end_index - 1."""

    def __init__(self, vocab_size: int, hidden_size: int, group: dist.ProcessGroup | None) -> None:
        super().__init__(vocab_size, hidden_size, init_method=nn.init.zeros_, config=_CONFIG, tp_group=group)
