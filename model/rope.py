"""Rotary position embedding (Su et al. 2021) with Llama-3's frequency scaling."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from model.config import ModelConfig, RopeScaling


def inverse_frequencies(
    width: int, theta: float, scaling: RopeScaling | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the angle per position, fp64 [width/2] radians, in Hugging Face's order for Llama (halves, not pairs)."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    if scaling is None:
        return frequencies
    wavelength = 2 * math.pi / frequencies
    # 0: long wavelengths, stretched by `factor`; 1: short ones, unchanged; in between linear in original/wavelength
    kept = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


@lru_cache(maxsize=16)  # a pure function of its arguments: the decoder layers of one call share the table
def _table(
    start: int, length: int, step: int, width: int, theta: float, scaling: RopeScaling | None, device: str
) -> Tensor:
    # fp64, because at position one million an fp32 angle is wrong by 0.06 rad and streaming would drift
    with torch.inference_mode(False):  # so that training can use a table that inference has made
        # computed on the device: a copy to it would wait, and cannot be captured
        positions = torch.arange(length, dtype=torch.float64, device=device) * step + start
        turned = positions.unsqueeze(1) * inverse_frequencies(width, theta, scaling, device)
        return torch.stack((turned.cos(), turned.sin())).float()  # [2, length, width/2]


def angles(start: int, length: int, config: ModelConfig, device: torch.device, step: int = 1) -> Tensor:
    """Return cosines and sines, fp32 [2, L, 1, d/2], of positions start, start + step, ..."""
    # a table that a capture computes exists only when its graph is replayed, so it must not be cached
    make = _table.__wrapped__ if is_captured(device) else _table
    table = make(start, length, step, config.head_width, config.rope_theta, config.rope_scaling, str(device))
    return table.unsqueeze(2)


def is_captured(device: torch.device) -> bool:
    """Whether operations on the device are being captured into a CUDA graph, which must not wait for the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def rotate(x: Tensor, start: int, config: ModelConfig, step: int = 1, rotary: Tensor | None = None) -> Tensor:
    """Rotate queries or keys [B, L, H, d] to positions start, start + step, ... of the stream.

    rotary: the `angles` of these positions; None: they are computed.
    """
    if rotary is None:
        rotary = angles(start, x.size(1), config, x.device, step)
    cos, sin = rotary.to(x.dtype)  # each [L, 1, d/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
