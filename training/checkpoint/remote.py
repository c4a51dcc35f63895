"""Checkpoints at an address (`s3://`, `gs://` and others that fsspec knows), read through a verified local copy."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import xxhash

from training.checkpoint.manifest import MANIFEST, DamagedError, check_sizes, read_manifest, verify
from training.errors import ConfigError
from training.logs import without_secret

CACHE_VARIABLE = "MEMTRAIN_CACHE"


def cache_folder() -> Path:
    """What the runs of a user share on this machine; not made yet."""
    return Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "memtrain"))


def local_copy(address: str, field: str) -> Path:
    """Return a local folder with the checkpoint at `address`; an address without a scheme is a local path already.

    The copy is in `$MEMTRAIN_CACHE` (default ~/.cache/memtrain). The ranks of a machine share it, and one of them
    fetches it. Raises `ConfigError`, naming the configuration field `field`, when it cannot be fetched or is damaged.
    """
    if "://" not in address:
        return Path(address)
    shown = without_secret(address)
    cache = cache_folder() / "checkpoints"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        target = cache / xxhash.xxh3_64_hexdigest(address.rstrip("/").encode())
        with _locked(target.with_suffix(".lock")):
            _fetch(address.rstrip("/"), target)
    except DamagedError as error:
        raise ConfigError(f"{field}: {shown}: {error}; copy the checkpoint there again") from None
    except Exception as error:  # fsspec's file systems share no base class
        reason = without_secret(f"{type(error).__name__}: {error}")[:300]
        raise ConfigError(
            f"{field}: {shown} cannot be fetched ({reason}); check the address, the access rights and that fsspec's "
            "package for its scheme is installed (s3fs, gcsfs), or copy the checkpoint here"
        ) from None
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file; the system releases it when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(address: str, target: Path) -> None:
    """Copy the manifest and the files it lists, unless `target` has them already."""
    files, root = fsspec.url_to_fs(address)
    manifest = files.cat_file(f"{root}/{MANIFEST}")
    if _is_copy(target, manifest):
        return
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / MANIFEST).write_bytes(manifest)
    for name in read_manifest(partial):  # which has checked that these are plain file names
        files.get_file(f"{root}/{name}", str(partial / name))
    verify(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _is_copy(target: Path, manifest: bytes) -> bool:
    try:
        check_sizes(target)
        return (target / MANIFEST).read_bytes() == manifest
    except DamagedError:
        return False
