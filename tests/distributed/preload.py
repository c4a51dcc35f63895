"""Imported once by the forkserver: a rank then starts in a fraction of a second.

Without an import here every rank of every test pays for it again: DeepSpeed and megatron-core are 6 CPU-seconds.
"""

import gc
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gloo ranks, more of them than a machine has GPUs; read when torch is imported

import torch.distributed.checkpoint  # noqa: F401

import training.engine
import training.monitoring.plots
import training.session
import training.trainer  # noqa: F401

gc.freeze()  # a rank's garbage collector passes over what was imported, and its pages stay shared
