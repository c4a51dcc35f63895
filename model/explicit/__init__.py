"""Explicit memory (Memory3, arXiv 2407.01178): references written as sparse keys and values, which attention reads.

The names are imported on first use, because they need torch, as in `model`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.explicit.references import References
    from model.explicit.writing import write

__all__ = ["References", "write"]

_HOME = {"References": "model.explicit.references", "write": "model.explicit.writing"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'model.explicit' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
