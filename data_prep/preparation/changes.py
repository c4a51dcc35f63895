"""Find the input files that have changed: by size and time, and by content where only the time differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.files import file_checksum
from data_prep.shards.manifest import Record
from data_prep.sources.documents import DocumentReader
from data_prep.sources.hub import is_hub_part
from data_prep.sources.places import InputFile, is_remote
from data_prep.sources.token_formats import index_of

INPUTS_FILE = "inputs.json"
_NAMES = 5  # of each kind that a message lists


class FileFacts(Record):
    """An input file: path or URL, bytes, a version that changes when it is written again, xxh3 if it was computed."""

    name: str
    bytes: int
    version: str = ""
    xxh3: str = ""

    def same_as(self, other: "FileFacts") -> bool:
        """Whether the content is the same, by equal versions or equal known checksums."""
        if (self.name, self.bytes) != (other.name, other.bytes):
            return False
        return self.version == other.version or (bool(self.xxh3) and self.xxh3 == other.xxh3)


class Inputs(Record):
    """inputs.json of a prepared folder: the files that it was made from, by source."""

    sources: dict[str, list[FileFacts]]


def facts_of(file: InputFile, source: SourceConfig, checksum: bool = False) -> FileFacts:
    """Returns the facts of a listed file; checksum: read a local file to compute it. Raises OSError."""
    version, digest = file.version, ""
    if is_local(file.name) and source.kind == "megatron":  # its index counts too
        index = index_of(Path(file.name))
        info = index.stat() if index.is_file() else None
        version += f" {info.st_size} {info.st_mtime_ns}" if info else " without index"
        digest = file_checksum(index) if checksum and info else ""
    if checksum and is_local(file.name):
        digest = file_checksum(Path(file.name)) + digest
    return FileFacts(name=file.name, bytes=file.bytes, version=version, xxh3=digest)


def is_local(name: str) -> bool:
    """Whether `name` is a path on this machine."""
    return not is_remote(name) and not is_hub_part(InputFile(name, 0))


def facts_now(name: str, source: SourceConfig, checksum: bool = False) -> FileFacts | None:
    """Returns the present facts of a local file, or None when it is gone. Raises OSError."""
    path = Path(name)
    if not path.is_file():
        return None
    info = path.stat()
    version = "" if source.kind == "python-stdlib" else str(info.st_mtime_ns)
    return facts_of(InputFile(name, info.st_size, version), source, checksum)


@dataclass
class Changes:
    """Names of the files that have changed, are new or are gone."""

    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.new or self.gone)

    def __str__(self) -> str:
        kinds = {"changed": self.changed, "new": self.new, "gone": self.gone}
        return ", ".join(f"{len(names):,} {kind} ({_shown(names)})" for kind, names in kinds.items() if names)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_NAMES]) + (", …" if len(names) > _NAMES else "")


def compare(
    before: Iterable[FileFacts], files: Iterable[InputFile], source: SourceConfig
) -> tuple[Changes, Mapping[str, FileFacts]]:
    """Returns the changes between earlier and present files, and the present facts by name.

    A file that differs only in its time is read: its facts then have a checksum, and it counts as changed unless the
    earlier checksum is known and equal. Raises OSError.
    """
    changes, then = Changes(), {facts.name: facts for facts in before}
    now: dict[str, FileFacts] = {}
    for file in files:
        facts, was = facts_of(file, source), then.get(file.name)
        if was is None:
            changes.new.append(file.name)
        elif not was.same_as(facts):
            if was.bytes == facts.bytes:
                facts = facts_of(file, source, checksum=True)
            if not was.same_as(facts):
                changes.changed.append(file.name)
        now[file.name] = facts
    changes.gone = [name for name in then if name not in now]
    return changes, now


def check_inputs(folder: Path, sources: Iterable[SourceConfig], console: Console) -> None:
    """Raises DataError when a finished folder was made from other local files than the present ones.

    Folders without inputs.json, of earlier versions, and folders whose whole input is gone are accepted.
    """
    path = folder / INPUTS_FILE
    try:
        before = Inputs.model_validate_json(path.read_bytes()).sources
    except FileNotFoundError:
        return
    except (ValidationError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again, or prepare the folder again") from error
    for source in sources:
        if source.kind in ("hf", "python-stdlib") or is_remote(source.path or ""):
            continue
        try:
            changes, _ = compare(before.get(source.label, []), DocumentReader(source).files, source)
        except (DataError, OSError) as error:
            console.print(f"{source.label}: not compared with its input: {error}", markup=False)
            continue
        if changes:
            raise DataError(
                f"{folder}: was prepared from other input; {source.label}: {changes}; choose another folder, or delete "
                "that one. To train on it as it is, a run needs no preparation"
            )
