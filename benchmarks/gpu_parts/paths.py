"""The fast paths of training, each of which can be taken away, so that a measurement says what it is worth."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Undo = Callable[[], None]


@contextlib.contextmanager
def without(names: frozenset[str]) -> Iterator[None]:
    """Every path but those in `names` (of `_PATHS`).  Raises `LookupError` where the code has none of them."""
    with contextlib.ExitStack() as stack:
        missing = []
        for name in sorted(names):
            try:
                stack.enter_context(_PATHS[name]())
            except LookupError as error:
                missing.append(str(error))
        if names and len(missing) == len(names):
            raise LookupError("; ".join(missing))
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


@contextlib.contextmanager
def _chunked_loss() -> Iterator[None]:
    """The loss of all tokens in one block."""
    with replaced(module("model.loss"), "LOSS_BLOCK", {"cpu": 2**62, "cuda": 2**62}):
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
    "chunked loss": _chunked_loss,
}
