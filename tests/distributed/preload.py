"""Imported once by the forkserver: a rank then starts in a fraction of a second."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gloo ranks, more of them than a machine has GPUs; read when torch is imported

import torch.distributed.checkpoint  # noqa: F401
