"""The fast paths of training, each of which can be taken away, so that a measurement says what it is worth."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Undo = Callable[[], None]


@contextlib.contextmanager
def without(names: frozenset[str]) -> Iterator[None]:
    """Every path but those in `names` (of `_PATHS`).  Raises `LookupError` where the code has no such path to take away."""
    with contextlib.ExitStack() as stack:
        for name in sorted(names):
            if name not in _PATHS:
                raise LookupError(name)
            stack.enter_context(_PATHS[name]())
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    if not hasattr(owner, name):
        raise LookupError(f"{getattr(owner, '__name__', owner)} has no {name}")
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _fused_update() -> Iterator[None]:
    """AdamW as PyTorch's default, a kernel for each operation over many tensors."""
    own = torch.optim.AdamW

    def plain(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        return own(*arguments, **(options | {"fused": False}))

    with replaced(torch.optim, "AdamW", plain):
        yield


@contextlib.contextmanager
def _varlen() -> Iterator[None]:
    """Attention with a mask of documents."""
    with replaced(module("model.preparation"), "serves_varlen", lambda *_: False):
        yield


def module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LookupError(str(error)) from None


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    """What the configuration or the loop switches."""
    yield


_PATHS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "compile": _nothing,
    "fused AdamW": _fused_update,
    "varlen": _varlen,
}
