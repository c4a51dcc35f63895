"""Rotary position embedding (Su et al. 2021) with Llama-3's frequency scaling."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from model.config import ModelConfig, RopeScaling


def inverse_frequencies(
    width: int, theta: float, scaling: RopeScaling | None, device: torch.device | str = "cpu"
) -> Tensor:
    """fp64 [width/2] angles per position, in the order Hugging Face's Llama uses (halves, not pairs)."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    if scaling is None:
        return frequencies
    wavelength = 2 * math.pi / frequencies
    # 0 = long wavelengths, stretched by `factor`; 1 = short ones, kept; linear in original/wavelength between
    kept = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


@lru_cache(maxsize=16)  # a pure function of its arguments: the decoder layers of one call share the table
def _table(
    start: int, length: int, step: int, width: int, theta: float, scaling: RopeScaling | None, device: str
) -> Tensor:
    # Angles in fp64: at position one million an fp32 angle is off by 0.06 rad, and streaming would drift.
    with torch.inference_mode(False):  # a table first made under inference_mode must still serve training
        # on the device itself: a copy to it would wait, and cannot be captured
        positions = torch.arange(length, dtype=torch.float64, device=device) * step + start
        turned = positions.unsqueeze(1) * inverse_frequencies(width, theta, scaling, device)
        return torch.stack((turned.cos(), turned.sin())).float()  # [2, length, width/2]


def angles(start: int, length: int, config: ModelConfig, device: torch.device, step: int = 1) -> Tensor:
    """fp32 [2, L, 1, d/2]: cosines and sines of positions from `start` on, `step` apart from each other."""
    # what a capture computes belongs to its graph, and is there only once that is replayed: it must not be kept
    make = _table.__wrapped__ if is_captured(device) else _table
    table = make(start, length, step, config.head_width, config.rope_theta, config.rope_scaling, str(device))
    return table.unsqueeze(2)


def is_captured(device: torch.device) -> bool:
    """Whether operations on the device are being captured into a CUDA graph, where nothing may be waited for."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def rotate(x: Tensor, start: int, config: ModelConfig, step: int = 1, rotary: Tensor | None = None) -> Tensor:
    """Rotate queries or keys [B, L, H, d] whose first token stands at position `start` of the stream, the next ones at
    `step` positions from each other. rotary: their `angles`, where they have been worked out."""
    if rotary is None:
        rotary = angles(start, x.size(1), config, x.device, step)
    cos, sin = rotary.to(x.dtype)  # each [L, 1, d/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
