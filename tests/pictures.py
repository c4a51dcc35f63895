"""What a picture shows, by its pixels."""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread


def coloured(path: Path, colour: str, tolerance: float = 0.02) -> int:
    """The number of pixels of a PNG whose red, green and blue (0 to 1) are those of `colour`."""
    pixels = imread(path)[..., :3]
    return int((np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < tolerance).sum())


def inked(path: Path) -> float:
    """The share of the pixels of a PNG that differ from its most frequent colour."""
    pixels = (255 * imread(path)[..., :3]).round().astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return 1 - float(np.unique(pixels, return_counts=True)[1].max()) / pixels.size
