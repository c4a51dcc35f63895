"""Damaged documents: raise at the first, or count them and continue."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.errors import DataError

_MESSAGES = 10_000  # messages that are kept; further documents are only counted


@dataclass
class Problems:
    """Counts damaged and empty documents. With on_error `fail` the first damaged one raises DataError."""

    on_error: Literal["fail", "skip"] = "fail"
    empty: int = 0
    damaged: int = 0
    messages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def bad(self, message: str, way_out: str = "repair it, or set on_error: skip") -> None:
        if self.on_error == "fail":
            raise DataError(f"{message}; {way_out}")
        self.damaged += 1
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)

    def warn(self, message: str) -> None:
        """Keeps a warning of content that is read, but perhaps not as it was meant."""
        if len(self.warnings) < _MESSAGES:
            self.warnings.append(message)

    def is_empty(self, origin: str) -> None:
        """Counts a document (or a file) without text, which is not damage."""
        self.empty += 1
        if len(self.messages) < _MESSAGES:
            self.messages.append(f"{origin}: is empty")


class Lenient(Problems):
    """Counts damaged documents in another `Problems`, and never raises."""

    def __init__(self, target: Problems) -> None:
        super().__init__("skip")
        self._target = target

    def bad(self, message: str, way_out: str = "") -> None:
        self._target.damaged += 1

    def is_empty(self, origin: str) -> None:
        self._target.empty += 1
