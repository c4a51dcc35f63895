"""The source files that let an exported folder run without this project.

Transformers copies a folder's Python files into a package of its own, all in one directory, and finds them by their
relative imports.  So each file of `model/` that `model/hf/modeling.py` needs is written under a flat name with its
`from model.x import` turned into `from .memtrain_x import`; nothing else in it changes.  megatron-core's place is taken
by `model/hf/one_rank.py`.
"""

import re
from pathlib import Path

MODELING, CONFIGURATION = "modeling_memtrain", "configuration_memtrain"
PACKAGES = ("torch", "transformers", "pydantic")  # what the written files import beside the standard library

_ROOT = Path(__file__).parents[1]
_NAMES = {"model.hf.modeling": MODELING, "model.hf.configuration": CONFIGURATION}
_INSTEAD = {"model.megatron": "model.hf.one_rank"}
_IMPORT = re.compile(r"^(\s*)from (model[\w.]*) import ", re.MULTILINE)


def source_files() -> dict[str, str]:
    """File name -> text."""
    files: dict[str, str] = {}
    waiting = ["model.hf.modeling"]
    while waiting:
        module = waiting.pop()
        if (name := f"{_flat(module)}.py") in files:
            continue
        text = _source(_INSTEAD.get(module, module)).read_text(encoding="utf-8")
        waiting += [found for _, found in _IMPORT.findall(text)]
        files[name] = _IMPORT.sub(lambda match: f"{match[1]}from .{_flat(match[2])} import ", text)
    return files


def _flat(module: str) -> str:
    return _NAMES.get(module) or "memtrain_" + "_".join(module.split(".")[1:])


def _source(module: str) -> Path:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
