"""Documents out of text files, JSONL, Parquet and the standard library, always in the same order."""

import glob
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import SourceConfig
from .errors import DataError
from .formats import read_jsonl, read_parquet, read_text
from .problems import Lenient, Problems

_PATTERNS = {
    "text": (".txt", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "python-stdlib": (".py",),
}
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text, the name of its source, and where it was read: a file, or file:line (row for Parquet)."""

    text: str
    source: str
    origin: str


def _ignore(count: int) -> None:
    pass


class DocumentReader:
    """A source's documents, in the order of their sorted paths.

    Raises:
        DataError: the path does not exist or holds no file of the source's kind.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.name = source.label
        self.files = _find_files(source)

    @property
    def file_bytes(self) -> int:
        """Size of all files on disk: what `advance` of `read` adds up to."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, problems: Problems, advance: Callable[[int], None] = _ignore) -> Iterator[Document]:
        """Yields every document that is neither empty nor damaged; counts those in `problems`.

        Args:
            problems: raises DataError at the first damaged document, or counts it.
            advance: called with the number of file bytes read since the last call.
        """
        readers = {"jsonl": read_jsonl, "parquet": read_parquet}
        reader = readers.get(self.source.kind, read_text)
        # A few of the standard library's test files are in other encodings on purpose.
        damage = Lenient(problems) if self.source.kind == "python-stdlib" else problems
        for path in self.files:
            size, seen = path.stat().st_size, 0
            for text, origin, position in reader(path, self.source.text_field, damage):
                advance(position - seen)
                seen = position
                if not text or text.isspace():
                    problems.empty += 1
                elif not _encodes(text):
                    problems.bad(f"{origin}: text has a lone surrogate, which no UTF-8 file can hold")
                else:
                    yield Document(text, self.name, origin)
            advance(size - seen)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_files(source: SourceConfig) -> list[Path]:
    if source.path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in root.rglob("*.py") if not _NOT_STDLIB & set(path.relative_to(root).parts)]
    else:
        root = source.path.expanduser()
        endings = _PATTERNS[source.kind]
        if root.is_file():
            paths = [root]
        elif root.is_dir():
            paths = [path for path in root.rglob("*") if path.name.endswith(endings)]
        elif glob.has_magic(str(root)):
            # Path.glob takes no absolute pattern.
            paths = [Path(path) for path in glob.glob(str(root), recursive=True)]  # noqa: PTH207
        else:
            raise DataError(f"sources.path: {root} does not exist; give a file, a folder or a glob")
    files = sorted((path for path in paths if path.is_file()), key=lambda path: path.as_posix())
    if not files:
        kinds = ", ".join("*" + ending for ending in _PATTERNS[source.kind])
        raise DataError(f"sources.path: {root} holds no {kinds} file; check path and kind ({source.kind})")
    return files
