"""A folder to train small runs in, by the commands that people type."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.e2e.commands import DEEPSPEED, Done, tree

LENGTH, SEGMENT, PHASE_STEPS, EVERY = 64, 16, 6, 5
STEPS = 2 * PHASE_STEPS
TOKENS_PER_STEP = 4 * LENGTH

needs_deepspeed = [
    pytest.mark.skipif(not DEEPSPEED.is_file(), reason=f"{DEEPSPEED} is not there"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the launcher would give the ranks GPUs"),
]


@dataclass(frozen=True)
class Place:
    """A working folder with a configuration in it."""

    folder: Path
    config: str = "tiny.yaml"

    def runs(self, name: str) -> Path:
        return self.folder / "runs" / name

    def arguments(self, name: str, *overrides: str) -> list[str]:
        return ["--config", self.config, f"run.name={name}", *overrides]


def assert_refused(place: Place, done: Done, before: dict[str, tuple[int, str]], words: list[str]) -> None:
    """Exit code 2, one line on standard error that has `words`, nothing written."""
    assert done.code == 2, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert all(word in line for word in words), line
    assert tree(place.folder) == before
