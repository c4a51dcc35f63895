"""Logging: each rank writes a file of its own; warnings of rank 0 also go to standard error.

The other ranks write no warnings to the screen, because the same line from hundreds of ranks hides the cause.
"""

import logging
import logging.handlers
import os
import re
import select
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

# Loggers of Python's warnings and of megatron-core; DeepSpeed's logger needs a filter, see `Divert`.
LIBRARIES = ("py.warnings", "megatron")
# Libraries that log every retry or migration at INFO.
QUIET = ("mlflow", "alembic", "urllib3", "matplotlib", "PIL", "fsspec")


# scheme://user:password@host. The second pattern covers passwords in which / ? # are not escaped: it removes all up to
# the last @, which may be more of an unusual address than the password, but never less.
USER_INFO = re.compile(r"://[^\s/?#'\"]*@")
RAW_USER_INFO = re.compile(r"://[^\s/@:'\"]+:[^\s'\"]*@")
QUERY_SECRET = re.compile(r"([?&](?:password|passwd|pwd|token|secret|api_key|access_key)=)[^&\s'\"]+", re.IGNORECASE)


def without_secret(text: str) -> str:
    """Return `text` with user names and passwords removed from the addresses in it, so that it can be shown."""
    for pattern in (USER_INFO, RAW_USER_INFO):
        text = pattern.sub("://", text)
    return QUERY_SECRET.sub(r"\1***", text)


def without_secrets(value: Any) -> Any:
    """Return a copy of a nested configuration with `without_secret` applied to every string; tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return without_secret(value) if isinstance(value, str) else value


def discard_unread_output() -> bool:
    """Redirect standard output and error to /dev/null where their reader is gone; return whether any was.

    With a closed terminal or pipe every write fails, also Python's last flush, which would change the exit code.
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
    """Writes to the present `sys.stderr`, which a live progress bar replaces so that lines appear above it."""

    def __init__(self) -> None:
        """Handle warnings and above."""
        logging.Handler.__init__(self, logging.WARNING)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present standard error."""
        return sys.stderr


class SpokenFormatter(logging.Formatter):
    """Formats records as `warning: …` and `error: …`, the form in which the commands print theirs."""

    def __init__(self) -> None:
        """Format level and message only, without time and logger."""
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        level, _, text = super().format(record).partition(": ")
        return f"{level.lower()}: {text}"


class QuietFileHandler(logging.FileHandler):
    """A file handler that ignores a failed write: a full disk is reported by the checkpoint that cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Do nothing, where logging would print two tracebacks for each line."""


class Divert(logging.Filter):
    """Sends a logger's records to the given handlers only.

    It is a filter because DeepSpeed adds its own handler to standard output when it is imported, which may be later; a
    filter is called before any handler and can stop the record.
    """

    def __init__(self, handlers: list[logging.Handler]) -> None:
        """Send records to `handlers`, to each from its own level upward."""
        super().__init__()
        self._handlers = handlers

    def filter(self, record: logging.LogRecord) -> bool:
        """Give `record` to the handlers; return False, which stops it."""
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        return False


def hold_warnings() -> None:
    """Keep the messages of libraries at import until `setup_logging` writes them to the run's log.

    Call it before torch is imported. A process that ends without a log prints the warnings at its end.
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
    """Set chatty libraries to WARNING; call it before MLflow is imported."""
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
