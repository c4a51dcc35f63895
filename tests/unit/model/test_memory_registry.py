"""Kinds are found by one registry, and nothing but `model/memory/` names one."""

import ast
import importlib.metadata
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from model import MemoryConfig, ModelError
from model.memory import entry_points
from model.memory.registry import BUILT_IN, choices
from model.memory.spec import MemoryConfig as Base
from tests.reference.small import tiny

ROOT = Path(__file__).parents[3]
LIBRARY = ("data_prep", "evaluation", "launchers", "model", "training")
# "none" is every other setting's word, too
NAMES = {kind.label for kind in BUILT_IN} | {kind.selects["kind"] for kind in BUILT_IN} - {"none"} | set(choices())
PACKAGES = {kind.__module__.rpartition(".")[0] for kind in BUILT_IN if kind.exists}  # model.memory.KIND


def classes() -> set[str]:
    found = set[str]()
    for package in PACKAGES:
        for path in (ROOT / package.replace(".", "/")).glob("*.py"):
            found |= {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
    return {name for name in found if not name.startswith("_")}


CLASSES = classes()


def named_in(path: Path) -> set[str]:
    """Kinds, their classes and their packages that the code of a file names."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES - {"none"}:
            found.add(node.value)
        if isinstance(node, ast.Name) and node.id in CLASSES:
            found.add(node.id)
        if isinstance(node, ast.ImportFrom) and any((node.module or "").startswith(package) for package in PACKAGES):
            found.add(str(node.module))
    return found


def test_no_file_of_the_library_names_a_kind() -> None:
    files = [path for room in LIBRARY for path in sorted((ROOT / room).rglob("*.py"))]
    outside = [path for path in files if (ROOT / "model" / "memory") not in path.parents]
    assert len(outside) > 150
    assert {str(path.relative_to(ROOT)): names for path in outside if (names := named_in(path))} == {}


def test_the_check_sees_a_name(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text('from model.memory.rmt.module import Frame\nif kind == "delta":\n    DeltaMemory()\n')
    assert named_in(path) == {"delta", "DeltaMemory", "model.memory.rmt.module"}


def test_an_unknown_kind_names_the_known_ones() -> None:
    for make in (lambda: MemoryConfig(kind="lm3"), lambda: tiny(memory={"kind": "lm3"})):
        with pytest.raises(ValidationError, match=r"kind\n.*'none', 'lm2', 'delta' or 'rmt'"):
            make()


@pytest.mark.parametrize("kind", choices())
def test_a_file_with_the_fields_of_all_kinds_still_opens(kind: str) -> None:
    """As resolved configurations and checkpoints were written when all kinds had one class."""
    old: dict[str, Any] = {
        "kind": "none",
        "flow": None,
        "slots": None,
        "heads": 4,
        "top_k": None,
        "bptt_segments": None,
    }
    old |= {"rmt_open": 0.0, "sparse_writes": False, "layers": "all"}
    selects = choices()[kind].selects
    assert tiny(memory=old | selects) == tiny(memory=dict(selects))


@pytest.mark.parametrize("kind", choices())
def test_what_is_dumped_is_read_again(kind: str) -> None:
    config = tiny(memory=dict(choices()[kind].selects))
    for dumped in (config.model_dump(mode="json"), config.model_dump(mode="json", exclude_defaults=True)):
        again = type(config)(**dumped)
        assert again == config and type(again.memory) is choices()[kind]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"kind": "delta", "top_k": 3},
            "top_k 3 means nothing to kind 'delta': remove top_k, or set kind: lm2, flow",
        ),
        ({"kind": "none", "flow": "time"}, "flow 'time' means nothing to kind 'none': remove flow, or set kind: lm2"),
        (
            {"kind": "lm2", "rmt_open": 1.0},
            "rmt_open 1.0 means nothing to kind 'lm2': remove rmt_open, or",
        ),
    ],
)
def test_a_field_of_another_kind_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MemoryConfig(**fields)


class Unfinished(Base):
    label = "half"
    selects: ClassVar[dict[str, str]] = {"kind": "half"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.spec:Config", r"memory.kind 'half': nowhere.spec:Config .*cannot be imported \(ModuleNotFoundError"),
        ("model.config:ExplicitConfig", "must be a subclass of model.memory.spec.MemoryConfig"),
        (f"{__name__}:Unfinished", "lacks the methods build, parameters, weights, products, kept, seconds"),
    ],
)
def test_a_package_that_brings_no_kind_is_named(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("half", value, entry_points.GROUP)])
    monkeypatch.setattr(entry_points, "entry_points", lambda **wanted: points.select(**wanted))
    assert MemoryConfig(kind="delta").kind == "delta"  # others are not in its way
    with pytest.raises(ModelError, match=words):
        MemoryConfig(kind="half")


def test_two_packages_with_one_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("half", f"{package}:Config", entry_points.GROUP) for package in ("one", "two")])
    monkeypatch.setattr(entry_points, "entry_points", lambda **wanted: points.select(**wanted))
    with pytest.raises(ModelError, match="the packages one and two both bring one"):
        MemoryConfig(kind="half")


def test_the_group_is_what_the_page_says() -> None:
    assert f'"{entry_points.GROUP}"' in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert importlib.metadata.entry_points(group=entry_points.GROUP) is not None
