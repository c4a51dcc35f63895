"""What a run refuses, and the exit codes other programs rely on."""

from pathlib import Path

from data_prep.errors import DataError
from model.errors import ModelError


class ConfigError(ValueError):
    """A run configuration that cannot be used; one line a problem: field, value, rule, way out."""


class RankConfigError(ConfigError):
    """A mistake that one rank alone sees, which it must tell itself."""


def output_folder(folder: Path, option: str) -> Path:
    """`folder`, made where it was missing; raises `ConfigError` naming `option` when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be made ({error.strerror}); give another folder") from None
    return folder


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not finite, a damaged checkpoint.  The last good checkpoint stays."""


class RankError(TrainingError):
    """A failure of one rank alone, which it must tell itself."""


BAD_INPUT = (ConfigError, ModelError, DataError)  # exit code 2: nothing was written

EXIT_FINISHED = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # a shell's code for SIGINT
EXIT_RUN_AGAIN = 75  # saved before the end: the same command continues
