"""Keeps the import of large libraries short: every rank of every run waits for it."""

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Functions that a library compiles while it is imported stay as they are; the compiler is not imported.

    Only for libraries whose compiled functions are not used here: the import of the compiler takes more than a second.
    """
    kept = torch.compile
    torch.compile = lambda model=None, **_: model if model else (lambda function: function)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = kept


@contextlib.contextmanager
def without_module(name: str) -> Iterator[None]:
    """A library that is imported meanwhile does not find the module `name`, unless that module is imported already.

    Only for a module that the library can do without.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
