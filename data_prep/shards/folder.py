"""A prepared folder, on this machine or behind a URL; a remote folder's shards are copied to a bounded cache."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from data_prep.config import CacheConfig
from data_prep.errors import DataError
from data_prep.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry, verify_shard
from data_prep.shards.reading import Shard, ShardViews
from data_prep.sources.places import file_system, is_remote
from data_prep.sources.remote import RemoteCache
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer


class PreparedFolder:
    """A prepared folder: its `manifest`, checked against the sizes of its files, its tokenizer and its shards.

    Raises:
        DataError: a file is missing, cut short, foreign or malformed, or the storage fails; the message names it.
    """

    def __init__(self, place: Path | str, cache: CacheConfig | None = None) -> None:
        self.place = place if is_remote(place) else Path(place).expanduser()
        self.cache = RemoteCache(cache or CacheConfig()) if is_remote(self.place) else None
        if self.cache is None:
            self.manifest = Manifest.load(Path(self.place))
            return
        try:
            system, path = file_system(str(self.place))
            sizes = {info["name"].rsplit("/", 1)[-1]: int(info["size"]) for info in system.ls(path, detail=True)}
            text = system.cat_file(f"{path.rstrip('/')}/{MANIFEST_FILE}")
        except DataError:
            raise
        except Exception as error:  # each storage raises its own errors
            raise DataError(
                f"{self._url(MANIFEST_FILE)}: cannot be read ({error!r}); check the URL and your credentials"
            ) from error
        self.manifest = Manifest.parse(text, self._url(MANIFEST_FILE))
        self.manifest.check_sizes(sizes, str(self.place))
        try:
            self.manifest.check_tokenizer(self.tokenizer_path)
        except DataError:  # the copy may be of an earlier folder at this URL
            self.cache.forget(self._url(self.manifest.tokenizer.file))
            self.manifest.check_tokenizer(self.tokenizer_path)

    @property
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer's file, or of its local copy."""
        name = self.manifest.tokenizer.file
        if self.cache is None:
            return Path(self.place) / name
        return self.cache.fetch(self._url(name))

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises DataError when its bos and eos are not those that delimit the documents."""
        tokenizer, entry = load_tokenizer(self.tokenizer_path), self.manifest.tokenizer
        if (tokenizer.bos_id, tokenizer.eos_id) != (entry.bos_id, entry.eos_id):
            raise DataError(
                f"{self._url(entry.file)}: bos and eos are {tokenizer.bos_id} and {tokenizer.eos_id}, but "
                f"{entry.bos_id} and {entry.eos_id}, ordinary tokens of it, delimit the documents of this folder; "
                "prepare the folder again"
            )
        return tokenizer

    def shard(self, entry: ShardEntry, checksum: bool = True) -> Shard:
        """Returns the shard, not yet opened."""
        if self.cache is None:
            return Shard(Path(self.place), entry, self.manifest.token_type, checksum)
        fetch = functools.partial(self.cache.fetch, self._url(entry.file), entry.bytes)
        forget = functools.partial(self.cache.forget, self._url(entry.file))
        return _RemoteShard(self._url(entry.file), fetch, forget, entry, self, checksum)

    def prefetch(self, entries: list[ShardEntry]) -> None:
        """Starts to copy the first of these shards, if the folder is remote."""
        if self.cache is not None:
            self.cache.prefetch((self._url(entry.file), entry.bytes, "") for entry in entries)

    def verify(self) -> None:
        """Reads every shard and raises DataError at the first whose checksum differs."""
        for entry in self.manifest.shards:
            if self.cache is None:
                verify_shard(Path(self.place) / entry.file, entry)
            else:
                self.shard(entry).open()

    def _url(self, name: str) -> str:
        return f"{str(self.place).rstrip('/')}/{name}"


class _RemoteShard(Shard):
    """A shard that is copied to this machine when it is first opened; a damaged copy is made again once."""

    def __init__(
        self,
        url: str,
        fetch: Callable[[], Path],
        forget: Callable[[], None],
        entry: ShardEntry,
        folder: PreparedFolder,
        checksum: bool,
    ) -> None:
        super().__init__(Path(os.sep), entry, folder.manifest.token_type, checksum)
        self._url, self._fetch, self._forget = url, fetch, forget

    def open(self) -> ShardViews:
        if self._views is None:
            self.path = self._fetch()
            try:
                return super().open()
            except DataError:
                self._forget()
            self.path = self._fetch()
            try:
                return super().open()
            except DataError as error:
                self._forget()
                raise DataError(f"{self._url}: {error}") from error
        return self._views
