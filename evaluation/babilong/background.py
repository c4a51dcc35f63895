"""Sentences of long books, in order, from a random place of a random book."""

import ast
import glob
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from evaluation.babilong.randomness import Keyed

WHERE = (
    "books of Project Gutenberg as *.txt files can be used (https://www.gutenberg.org); the published benchmark uses "
    "PG19's test books (https://github.com/google-deepmind/pg19)"
)
_CHARACTERS = 10  # of a book that are read for every token needed
_TRIES = 1000


@dataclass(frozen=True)
class Background:
    """`count` texts, which `text` reads by number; name: their name in results."""

    name: str
    count: int
    text: Callable[[int], str] = field(repr=False)

    def sentences(self, rng: Keyed, tokens: int) -> Iterator[str]:
        """Yield sentences without end, with white space as single spaces; about `tokens` tokens will be used.

        As in the benchmark they begin at a random character of a random text, without the first and the last sentence,
        which may be cut, and then continue at another one.
        Raises `DataError` when the texts have no sentences.
        """
        splitter, any_found = _splitter(), True
        while any_found:
            any_found = False
            for _ in range(_TRIES):
                text = self.text(rng.below(self.count))
                if not text:
                    continue
                start = rng.below(len(text))
                for sentence in _inner(splitter, text[start : start + _CHARACTERS * max(tokens, 200)]):
                    any_found = True
                    yield sentence
                if any_found:
                    break
        raise self.empty()

    def empty(self) -> DataError:
        """Return the error for texts without sentences."""
        return DataError(f"--background: {self.name} has no three consecutive sentences; {WHERE}")


def _inner(splitter: Any, text: str) -> Iterator[str]:
    """Yield all sentences except the first and the last."""
    waiting: str | None = None
    for number, (start, end) in enumerate(splitter.span_tokenize(text)):
        if waiting is not None:
            yield waiting
        waiting = " ".join(text[start:end].split()) if number else None


@lru_cache(maxsize=1)
def _splitter() -> Any:
    try:
        from nltk.tokenize.punkt import PunktSentenceTokenizer
    except ImportError as error:
        raise DataError(
            f"--background: needs the package nltk to find sentences ({error}): pip install 'memtrain[evaluation]'"
        ) from None
    return PunktSentenceTokenizer()


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, with white space as single spaces."""
    return [" ".join(text[start:end].split()) for start, end in _splitter().span_tokenize(text)]


def open_background(places: Sequence[str]) -> Background:
    """Open books by path, folder or glob (*.txt), or `hf:NAME[:SPLIT]`, a data set with a column `text`.

    Without places they are the documentation strings of Python's standard library, which every machine has.
    Raises `DataError` for a place without texts.
    """
    if not places:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return Background(f"docstrings of Python {version}", 1, lambda number: _documentation())
    if len(places) == 1 and places[0].startswith("hf:"):
        return _from_hub(places[0])
    paths: list[Path] = []
    for place in places:
        path = Path(place).expanduser()
        books = sorted(path.rglob("*.txt")) if path.is_dir() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207 (absolute globs)
        if not books:
            raise DataError(f"--background: {place} is neither a text file nor a folder of *.txt files; {WHERE}")
        paths += books
    # some books are cached, because samples begin in random ones
    read = lru_cache(maxsize=64)(lambda number: _read(paths[number]))
    return Background(f"{len(paths)} files of {', '.join(places)}", len(paths), read)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--background: {path} cannot be read as UTF-8 text ({error}); {WHERE}") from None


def _from_hub(place: str) -> Background:
    _, name, split = (place + ":test").split(":")[:3]
    rows = load_hub(name, None, split, "--background")
    if "text" not in rows.column_names:
        raise DataError(f"--background: data set {name} has no column 'text', only {', '.join(rows.column_names)}")
    return Background(place, len(rows), lambda number: str(rows[number]["text"]))


def load_hub(name: str, subset: str | None, split: str, option: str) -> Any:
    """Load a split of a data set of the Hugging Face hub or of a local folder. Raises `DataError`."""
    return _hub(option, name, lambda library: library.load_dataset(name, subset, split=split))


def hub_splits(name: str, subset: str | None, option: str) -> list[str]:
    """Return the names of a data set's splits. Raises `DataError`."""
    return list(_hub(option, name, lambda library: library.get_dataset_split_names(name, subset)))


def _hub(option: str, name: str, ask: Callable[[Any], Any]) -> Any:
    try:
        import datasets

        return ask(datasets)
    except ImportError as error:
        raise DataError(f"{option}: hf: needs the package datasets ({error}): pip install 'memtrain[hf]'") from None
    except Exception as error:  # the library raises errors of many kinds
        raise DataError(
            f"{option}: data set {name} cannot be opened ({error}); check its name, or give files"
        ) from None


@lru_cache(maxsize=1)
def _documentation() -> str:
    """Return the documentation strings of the standard library's top-level modules, in the order of their names."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        texts += [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
    return "\n\n".join(texts)
