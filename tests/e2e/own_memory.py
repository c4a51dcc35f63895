"""The example of docs/memory.md, taken from the page and installed as a package of others is."""

import os
import re
from pathlib import Path

from tests.e2e.commands import ROOT

PAGE = ROOT / "docs" / "memory.md"


def example() -> dict[str, str]:
    """File name -> text: the two modules, and the part of pyproject.toml that names the kind."""
    section = PAGE.read_text(encoding="utf-8").partition("## Write your own memory")[2].partition("\n## ")[0]
    blocks = re.findall(r"`((?:ema_memory/)?\w+\.\w+)`[^`]*?\n\n```\w+\n(.*?)```", section, re.DOTALL)
    files = dict(blocks)
    assert set(files) == {"ema_memory/spec.py", "ema_memory/module.py", "pyproject.toml"}
    return files


def installed(folder: Path) -> dict[str, str]:
    """Put the example's package into `folder` as pip leaves it; the environment in which Python finds it."""
    files = example()
    package, metadata = folder / "ema_memory", folder / "ema_memory-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").touch()
    for name in ("spec.py", "module.py"):
        (package / name).write_text(files[f"ema_memory/{name}"], encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ema-memory\nVersion: 1.0\n", encoding="utf-8")
    group, value = re.findall(r'"(memtrain\.[\w.]+)"\]\nema = "(.*)"', files["pyproject.toml"])[0]
    (metadata / "entry_points.txt").write_text(f"[{group}]\nema = {value}\n", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
