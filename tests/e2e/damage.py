"""Ways in which a checkpoint is damaged on disk; each returns what it did."""

import random
import shutil
from pathlib import Path


def flip(chance: random.Random, checkpoint: Path) -> str:
    path = any_file(chance, checkpoint)
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return f"a bit of {path.name} flipped"


def truncate(chance: random.Random, checkpoint: Path) -> str:
    path = any_file(chance, checkpoint)
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])
    return f"{path.name} cut short"


def remove(chance: random.Random, checkpoint: Path) -> str:
    path = any_file(chance, checkpoint)
    path.unlink()
    return f"{path.name} deleted"


def lose(chance: random.Random, checkpoint: Path) -> str:
    shutil.rmtree(checkpoint)
    return "the pointer names a deleted checkpoint"


def any_file(chance: random.Random, checkpoint: Path) -> Path:
    return chance.choice(sorted(path for path in checkpoint.iterdir() if path.stat().st_size))
