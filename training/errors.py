"""The errors of a run, and the exit codes that other programs rely on."""

from pathlib import Path

from data_prep.errors import DataError
from model.errors import ModelError


class ConfigError(ValueError):
    """A run configuration that cannot be used; the message has a line for each problem: field, value, rule, way out."""


class RankConfigError(ConfigError):
    """A mistake that only one rank sees, so that rank prints the message itself."""


def output_folder(folder: Path, option: str) -> Path:
    """Make `folder` where it is missing, and return it; raise `ConfigError` naming `option` when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be made ({error.strerror}); give another folder") from None
    return folder


class TrainingError(RuntimeError):
    """Training cannot go on, for example because of a damaged checkpoint. The last whole checkpoint stays."""


class RankError(TrainingError):
    """A failure of one rank alone, so that rank prints the message itself."""


BAD_INPUT = (ConfigError, ModelError, DataError)  # exit code 2: nothing was written

EXIT_FINISHED = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # a shell's code for SIGINT
EXIT_RUN_AGAIN = 75  # saved before the end: the same command continues
