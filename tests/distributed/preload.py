"""Imported once by the forkserver: a rank then starts in a fraction of a second."""

import torch.distributed.checkpoint  # noqa: F401

import training.engine  # noqa: F401
