"""Where log lines go: all of a rank's into its own file, the warnings of rank 0 also to the person watching.

A warning of each of hundreds of ranks on one screen hides the cause, so the others speak only in their files.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import select
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

# Loggers of what libraries say: Python's warnings and megatron-core's log. DeepSpeed's needs a filter, see `Divert`.
LIBRARIES = ("py.warnings", "megatron")
# Libraries that report every retry or migration at INFO.
QUIET = ("mlflow", "alembic", "urllib3", "matplotlib", "PIL", "fsspec")


# scheme://user:password@host. The second form is for passwords whose / ? # was not escaped: all up to the
# last @ goes, which may take too much of an odd address, never too little.
USER_INFO = re.compile(r"://[^\s/?#'\"]*@")
RAW_USER_INFO = re.compile(r"://[^\s/@:'\"]+:[^\s'\"]*@")
QUERY_SECRET = re.compile(r"([?&](?:password|passwd|pwd|token|secret|api_key|access_key)=)[^&\s'\"]+", re.IGNORECASE)


def without_secret(text: str) -> str:
    """`text` without the user names and passwords of the addresses in it, fit to be shown or logged."""
    for pattern in (USER_INFO, RAW_USER_INFO):
        text = pattern.sub("://", text)
    return QUERY_SECRET.sub(r"\1***", text)


def without_secrets(value: Any) -> Any:
    """A nested configuration with `without_secret` applied to every text in it; tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return without_secret(value) if isinstance(value, str) else value


def send_nowhere_what_nobody_reads() -> bool:
    """Point standard output and error to nowhere where their reader is gone; return whether one was.

    A closed terminal or a pipe's end that has gone makes every write fail, also the one with which Python ends, whose
    exit code would then not be the run's.
    """
    poll, gone = select.poll(), False
    for number in (1, 2):
        poll.register(number, 0)
    for number, events in poll.poll(0):
        if events & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            gone = True
    return gone


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a live progress bar replaces it to print above it."""

    def __init__(self) -> None:
        """A handler of warnings and above."""
        logging.Handler.__init__(self, logging.WARNING)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present standard error."""
        return sys.stderr


class SpokenFormatter(logging.Formatter):
    """`warning: …` and `error: …`, as the commands print theirs."""

    def __init__(self) -> None:
        """A formatter without time and place."""
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        level, _, text = super().format(record).partition(": ")
        return f"{level.lower()}: {text}"


class QuietFileHandler(logging.FileHandler):
    """A file handler that stays silent when a line cannot be written: the write that a full disk stops reports it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Nothing, where logging would print two tracebacks a line."""


class Divert(logging.Filter):
    """Sends a logger's records to our handlers and to no other.

    A filter and not a handler, because DeepSpeed installs its own handler to standard output whenever it is
    imported, before or after us, and a filter is asked before any handler.
    """

    def __init__(self, handlers: list[logging.Handler]) -> None:
        """`handlers` get what the logger is sent, each from its own level on."""
        super().__init__()
        self._handlers = handlers

    def filter(self, record: logging.LogRecord) -> bool:
        """Handle `record` here; False stops it."""
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        return False


def hold_warnings() -> None:
    """Keep what libraries say while they are imported until `setup_logging` writes it to the run's log.

    To be called before torch is imported.  A process that ends without a log prints the warnings at its end.
    """
    target = StderrHandler()
    target.setFormatter(SpokenFormatter())
    target.addFilter(lambda record: record.levelno >= logging.WARNING)  # a MemoryHandler asks for no level
    held = logging.handlers.MemoryHandler(1000, flushLevel=logging.CRITICAL + 1, target=target)
    _direct_libraries([held])


def setup_logging(run_dir: Path, rank: int) -> logging.Logger:
    """Make the `memtrain` logger write `run_dir/log/rank-N.log`, and warnings of rank 0 to standard error.

    The file is appended to, so a resumed run keeps the log of its earlier attempts. It also gets Python's warnings, the
    logs of DeepSpeed and megatron-core, and what `hold_warnings` kept. Calling it again (a new run in one process)
    replaces the handlers.
    """
    handlers = _handlers(run_dir, rank)
    logger = logging.getLogger("memtrain")
    logger.setLevel(logging.INFO)
    _replace_handlers(logger, handlers)
    _direct_libraries(handlers)
    quiet_libraries()
    return logger


def _direct_libraries(handlers: list[logging.Handler]) -> None:
    """Send warnings and megatron-core's log to the first handler, DeepSpeed's log to all."""
    logging.captureWarnings(True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO)
        _replace_handlers(logging.getLogger(name), handlers[:1])
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.setLevel(logging.INFO)
    for old in [item for item in deepspeed.filters if isinstance(item, Divert)]:
        deepspeed.removeFilter(old)
    deepspeed.addFilter(Divert(handlers))


def quiet_libraries() -> None:
    """Silence what libraries say of themselves; call it before MLflow is imported."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handlers(run_dir: Path, rank: int) -> list[logging.Handler]:
    folder = run_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    file_handler = QuietFileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s  %(message)s"))
    file_handler.setLevel(logging.INFO)
    if rank != 0:
        return [file_handler]
    stderr_handler = StderrHandler()
    stderr_handler.setFormatter(SpokenFormatter())
    return [file_handler, stderr_handler]


def _replace_handlers(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for old in list(logger.handlers):
        logger.removeHandler(old)
        if isinstance(old, logging.handlers.MemoryHandler):
            old.setTarget(handlers[0])  # which gets what was held, now that it is closed
        old.close()
    for handler in handlers:
        logger.addHandler(handler)
    logger.propagate = False
