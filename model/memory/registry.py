"""The memory kinds: those of this package, and those that installed packages name as entry points.

    [project.entry-points."memtrain.memory_kinds"]
    KIND = "package.spec:Config"        # a subclass of model.memory.spec.MemoryConfig; docs/memory.md has an example

An installed package is imported only when a configuration names its kind, or when all kinds are listed.
"""

from typing import Any, Literal

from pydantic import create_model

from model.memory.delta.spec import DeltaConfig
from model.memory.entry_points import kinds as installed_kinds
from model.memory.entry_points import load
from model.memory.lm2_depth.spec import LM2DepthConfig
from model.memory.lm2_time.spec import LM2TimeConfig
from model.memory.none.spec import NoMemoryConfig
from model.memory.rmt.spec import RMTConfig
from model.memory.spec import MemoryConfig

Kind = type[MemoryConfig]
BUILT_IN: tuple[Kind, ...] = (NoMemoryConfig, LM2TimeConfig, LM2DepthConfig, DeltaConfig, RMTConfig)


def registered() -> list[Kind]:
    """Return every kind, built in or installed. Raises `ModelError` when an installed one cannot be imported."""
    return [*BUILT_IN, *(load(kind) for kind in installed_kinds())]


def selected(fields: dict[str, Any]) -> Kind:
    """Return the class that a configuration's `fields` select.

    A class fits when the fields have all values of its `selects`; of several the one with most values is chosen.
    Raises `ValidationError` for an unknown kind, naming the known ones, and `ModelError` as `registered` does.
    """
    kind = fields.get("kind", "none")
    candidates = [c for c in BUILT_IN if c.selects["kind"] == kind] or [load(k) for k in installed_kinds() if k == kind]
    fitting = [c for c in candidates if all({"kind": kind, **fields}.get(k) == v for k, v in c.selects.items())]
    if not fitting:
        known = dict.fromkeys([*(c.selects["kind"] for c in BUILT_IN), *installed_kinds()])
        any_known: Any = Literal[tuple(known)]
        create_model("MemoryConfig", kind=(any_known, ...)).model_validate({"kind": kind})  # raises
    return max(fitting, key=lambda c: len(c.selects))


def own_fields(chosen: Kind, fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields` without other built-in kinds' fields that are null or have their default.

    Files with the fields of all kinds thus open. Raises `ValueError` for another kind's field with any other value.
    """
    others = {name: kind for kind in reversed(BUILT_IN) for name in kind.model_fields}
    foreign = {name: kind for name, kind in others.items() if name not in chosen.model_fields}
    for name, kind in foreign.items():
        value = fields.get(name)
        if value is not None and value != kind.model_fields[name].default:
            where = " ".join(f"{key} '{text}'" for key, text in chosen.selects.items())
            owner = ", ".join(f"{key}: {text}" for key, text in kind.selects.items())
            raise ValueError(f"{name} {value!r} means nothing to {where}: remove {name}, or set {owner}")
    return {name: value for name, value in fields.items() if name not in foreign}


def choices() -> dict[str, Kind]:
    """Return every kind by the name that commands take: `lm2`, `lm2-depth`, ..."""
    return {"-".join(kind.selects.values()): kind for kind in registered()}


def parallel_kinds() -> str:
    """Return the names of the kinds that compute all segments at once, for messages: `none, lm2, delta`."""
    return ", ".join(name for name, kind in choices().items() if not kind.sequential)


def captions() -> dict[str, str]:
    """Return each kind's caption for an interpretation's pictures, by label."""
    return {kind.label: kind.caption for kind in registered()}
