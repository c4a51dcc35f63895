"""The only module that imports DeepSpeed: without its banner, with a quiet logger, for the GPU if there is one."""

import contextlib
import io
import logging
import os

import torch

from model.library_imports import without_compiler, without_module

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# The autotuner would import MLflow, and the optimizer Muon the compiler: three seconds for every rank. Neither is used.
with without_module("mlflow"), without_compiler(), contextlib.redirect_stdout(io.StringIO()):  # it prints a banner
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
    from deepspeed.runtime.zero.muon import muon_optimizer as _muon  # noqa: F401
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, register_external_parameter
    from deepspeed.utils import (
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_local_fp32_param,
    )
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

__all__ = [
    "GatheredParameters",
    "LayerSpec",
    "PipeModelDataParallelTopology",
    "PipelineModule",
    "TiedLayerSpec",
    "__compatible_ops__",
    "deepspeed",
    "register_external_parameter",
    "safe_get_full_fp32_param",
    "safe_get_full_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_local_fp32_param",
]
