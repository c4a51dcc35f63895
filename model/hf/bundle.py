"""The source files that let an exported folder run without this project.

Transformers copies a folder's Python files into one directory, a package, and finds them by their relative imports. So
each file of `model/` that `model/hf/modeling.py` needs is written under a flat name. `from model.x import` becomes
`from .memtrain_x import`; nothing else changes. `model/hf/one_rank.py` replaces megatron-core, and
`model/hf/carried_kinds.py` replaces the search for installed memory kinds.

For a memory kind of another package, the files of that package that its class imports are written in the same way.
"""

import importlib.util
import re
from pathlib import Path

from model.memory.registry import BUILT_IN
from model.memory.spec import MemoryConfig

MODELING, CONFIGURATION = "modeling_memtrain", "configuration_memtrain"
PACKAGES = ("torch", "transformers", "pydantic", "numpy")  # imports of the written files beside the standard library

_NAMES = {"model.hf.modeling": MODELING, "model.hf.configuration": CONFIGURATION}
_KINDS = "model.memory.entry_points"
_INSTEAD = {"model.megatron": "model.hf.one_rank", _KINDS: "model.hf.carried_kinds"}


def source_files(memory: type[MemoryConfig]) -> dict[str, str]:
    """Return file name -> text of the source files; memory: the kind of the model's memory."""
    files: dict[str, str] = {}
    packages, entered = ["model"], ""
    if memory not in BUILT_IN:
        module, name = memory.__module__, memory.__name__
        packages.append(module.partition(".")[0])
        entered = f"\nfrom {module} import {name}  # noqa: E402\n\nKINDS[{memory.selects['kind']!r}] = {name}\n"
    imports = re.compile(rf"^(\s*)from ((?:{'|'.join(packages)})(?:\.\w+)*) import ", re.MULTILINE)
    waiting = ["model.hf.modeling"]
    while waiting:
        module = waiting.pop()
        if (file := f"{_flat(module)}.py") in files:
            continue
        text = _source(_INSTEAD.get(module, module)).read_text(encoding="utf-8")
        text += entered if module == _KINDS else ""
        waiting += [name for _, name in imports.findall(text)]
        files[file] = imports.sub(lambda match: f"{match[1]}from .{_flat(match[2])} import ", text)
    return files


def _flat(module: str) -> str:
    package, _, rest = module.partition(".")
    prefix = "memtrain" if package == "model" else f"kind_{package}"
    return _NAMES.get(module) or "_".join([prefix, *rest.split(".")])


def _source(module: str) -> Path:
    """Return the file of a module, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin)
