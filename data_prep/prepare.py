"""`prepare`: a folder of token shards out of a configuration, whole or not at all."""

import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from .build import Build
from .config import PrepareConfig
from .errors import DataError
from .files import sync
from .manifest import MANIFEST_FILE, Manifest
from .progress import print_summary
from .tokenize import Pool, available_cores


def prepare(config: PrepareConfig, folder: Path, console: Console | None = None) -> Manifest:
    """Makes `folder`: shards, tokenizer, manifest.json. Returns at once when it was made with these settings.

    The folder is built beside its place and renamed at the end; after a failure nothing is left. The result
    is byte for byte the same for every number of workers. With more than one, a script that calls this needs
    an `if __name__ == "__main__":`, as workers are new processes that import it.

    Args:
        console: where progress and the summary go; None is the terminal's standard error.

    Raises:
        DataError: unusable source, document, tokenizer or folder; no document left.
    """
    console = console or Console(stderr=True)
    folder = Path(folder).expanduser().resolve()
    finished = _finished(config, folder)
    if finished is not None:
        console.print(f"{folder} is already prepared with these settings: {len(finished.shards)} shards")
        return finished
    for left in sorted(folder.parent.glob(f"{folder.name}.tmp-*")):
        console.print(f"{left} is in use by another run, or was left by a killed one: then delete it")
    building = _new_folder(folder)
    try:
        with ExitStack() as stack:
            workers = config.workers or available_cores()
            pool = stack.enter_context(Pool(workers)) if workers > 1 else None
            manifest = Build(config, building, console, pool).run()
        manifest.save(building)
        _move(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    print_summary(console, manifest, folder)
    return manifest


def _new_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, so that renaming it there is one step."""
    building = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{building}: cannot make it ({error.strerror}); choose another folder") from error
    return building


def _finished(config: PrepareConfig, folder: Path) -> Manifest | None:
    """The manifest when `folder` is the result of `config`; None when there is nothing yet."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; choose another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / MANIFEST_FILE).is_file():
        raise DataError(f"{folder}: exists and is no prepared folder (no {MANIFEST_FILE}); choose another folder")
    manifest = Manifest.load(folder)
    if manifest.config_hash != config.hash:
        raise DataError(
            f"{folder}: was prepared with other settings (hash {manifest.config_hash}, now {config.hash}); "
            "choose another folder, or delete that one"
        )
    return manifest


def _move(building: Path, folder: Path) -> None:
    try:
        building.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot move the finished data there ({error.strerror}); did another process "
            "prepare it meanwhile? Run again, or choose another folder"
        ) from error
    sync(folder.parent)
