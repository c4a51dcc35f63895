"""Every name of the Python reference says what it is: shapes of tensors, units of quantities, errors it raises."""

import ast
import importlib
import inspect
import re
import runpy
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs")
HOOK = runpy.run_path(str(ROOT / "docs/site_hook.py"))

SHAPE = r"\[[^\]]+\]|\bscalar\b"
QUANTITY = r"(^|_)(timeout|interval|delay|wait|duration|age|length|lifetime|memory_size)$"
UNIT = r"\b(seconds?|s|minutes?|hours?|bytes|GiB|MiB|GB|tokens?|samples?|steps?|characters?)\b"


def public() -> Iterator[tuple[str, Any]]:
    """(name, object) of every class and function of the page, and of their public methods and properties."""
    for module in HOOK["API"]:
        package = importlib.import_module(module)
        for name in package.__all__:
            yield from with_members(f"{module}.{name}", getattr(package, name))
    for path in HOOK["API_EXTRA"]:
        parent, _, last = path.rpartition(".")
        if hasattr(importlib.import_module(parent), last) and not inspect.ismodule(
            found := getattr(importlib.import_module(parent), last)
        ):
            yield from with_members(path, found)
            continue
        for name, value in vars(importlib.import_module(path)).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == path:
                yield from with_members(f"{path}.{name}", value)


def with_members(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if inspect.isfunction(value) or inspect.isclass(value):
        yield path, value
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        if name.startswith(("_", "model_")):
            continue
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(member):
            yield f"{path}.{name}", inspect.unwrap(member)


def raises(function: Callable[..., Any]) -> bool:
    """Whether the function itself raises an error, not only what it calls."""
    waiting: list[ast.AST] = list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)  # type: ignore[attr-defined]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplemented" not in ast.unparse(node.exc):
            return True
        waiting.extend(ast.iter_child_nodes(node))
    return False


PUBLIC = dict(public())
FUNCTIONS = {path: value for path, value in PUBLIC.items() if inspect.isfunction(value)}


def text_of(path: str) -> str:
    """The docstring, and for a property or a method also that of its class, whose fields it may explain."""
    return inspect.cleandoc(PUBLIC[path].__doc__ or "")


def test_the_reference_is_not_empty() -> None:
    assert len(PUBLIC) > 100
    assert {"model.LanguageModel", "data_prep.TokenStream", "training.config.RunConfig.total_steps"} <= set(PUBLIC)
    assert sum(map(raises, FUNCTIONS.values())) > 15


@pytest.mark.parametrize("path", PUBLIC)
def test_it_has_a_docstring_of_its_own(path: str) -> None:
    assert text_of(path), f"{path}: say what it is"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_errors_are_named(path: str) -> None:
    if raises(FUNCTIONS[path]):
        assert re.search(r"\braises?\b", text_of(path), re.IGNORECASE), f"{path}: say which error it raises, and when"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_tensors_have_shapes(path: str) -> None:
    types = " ".join(map(str, FUNCTIONS[path].__annotations__.values()))
    if re.search(r"Tensor\b|ndarray", types):
        assert re.search(SHAPE, text_of(path)), f"{path}: say the shape of what it takes or returns, such as [B, S]"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_quantities_have_units(path: str) -> None:
    for name, kind in FUNCTIONS[path].__annotations__.items():
        if re.search(QUANTITY, name) and re.search(r"\b(int|float)\b", str(kind)):
            assert re.search(UNIT, text_of(path)), f"{path}: say the unit of {name}"
