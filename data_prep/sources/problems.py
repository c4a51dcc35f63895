"""Damaged documents: stop at the first, or count them and go on."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.errors import DataError

_MESSAGES = 10_000  # the count goes on, the text of more helps nobody


@dataclass
class Problems:
    """What to do about damaged documents, and how many there were. `fail` raises DataError at the first."""

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
        """Keeps what is read, but perhaps not as it was meant."""
        if len(self.warnings) < _MESSAGES:
            self.warnings.append(message)

    def is_empty(self, origin: str) -> None:
        """Counts a document (or a file) without text, which is no damage."""
        self.empty += 1
        if len(self.messages) < _MESSAGES:
            self.messages.append(f"{origin}: is empty")


class Lenient(Problems):
    """Counts what is damaged into another `Problems` without ever raising."""

    def __init__(self, target: Problems) -> None:
        super().__init__("skip")
        self._target = target

    def bad(self, message: str, way_out: str = "") -> None:
        self._target.damaged += 1

    def is_empty(self, origin: str) -> None:
        self._target.empty += 1
