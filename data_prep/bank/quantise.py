"""Compress keys and values to short codes, with FAISS's quantisers (arXiv 2407.01178, section on compression)."""

from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.bank.layout import DType, MemoryShape, QuantiserEntry, bank_factory, from_float32, to_float32
from data_prep.errors import DataError
from data_prep.files import file_checksum, replacing, write_text
from data_prep.references.retrieval import import_extra

Codes = NDArray[np.uint8]
_ENTRY = "quantiser.json"
_NAMES = ("quantiser-keys.faiss", "quantiser-values.faiss")


def faiss_factory(name: str, width: int) -> str:
    """Returns FAISS's spelling of a codec: "auto" is `bank_factory`, "OPQ20x80-Residual2x14-PQ8x10" as published."""
    if name == "auto":
        return bank_factory(width)
    parts = name.replace("-", ",").split(",")
    return ",".join(part.replace("x", "_") if part.startswith("OPQ") else part for part in parts)


def untrained(factory: str, width: int) -> Any:
    """Returns FAISS's codec for vectors of a head's width.

    Raises DataError when FAISS is missing or does not know the factory.
    """
    faiss = import_extra("faiss", "quantise")
    try:
        return faiss.index_factory(width, faiss_factory(factory, width))
    except RuntimeError as error:
        raise DataError(
            f"quantise: {factory!r} is not a FAISS codec for head width {width} ({_last(error)}); use auto"
        ) from error


class Quantiser:
    """A codec for keys and one for values, trained on written memories."""

    def __init__(self, factory: str, keys: Any, values: Any) -> None:
        faiss = import_extra("faiss", "quantise")
        self.factory, self._codecs = factory, (keys, values)
        self.code_bytes = int(keys.sa_code_size())
        self._bytes = [faiss.serialize_index(codec).tobytes() for codec in self._codecs]
        self.fingerprint = "".join(map(xxhash.xxh3_64_hexdigest, self._bytes))

    @classmethod
    def train(cls, memories: NDArray[Any], dtype: DType, factory: str = "auto", largest: int = 400_000) -> "Quantiser":
        """Trains on memories [n, L_mem, 2, H_kv, k, D] in their stored type, on at most `largest` keys and values each.

        Raises DataError when FAISS is missing, does not know the factory, or needs more vectors.
        """
        width = memories.shape[-1]
        codecs = []
        for kind in (0, 1):
            vectors = to_float32(memories[:, :, kind], dtype).reshape(-1, width)
            if len(vectors) > largest:
                vectors = vectors[np.random.default_rng(0).permutation(len(vectors))[:largest]]
            codec = untrained(factory, width)
            try:
                codec.train(np.ascontiguousarray(vectors))
            except RuntimeError as error:
                raise DataError(
                    f"quantise: {factory!r} cannot be trained on {len(vectors)} vectors ({_last(error)}); train on "
                    "more references, or choose a codec with fewer bits"
                ) from error
            codecs.append(codec)
        return cls(faiss_factory(factory, width), *codecs)

    def save(self, folder: Path) -> QuantiserEntry:
        """Writes both codecs and their entry into the bank's folder, and returns the entry."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(_NAMES, self._bytes, strict=True):
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        write_text(folder / _ENTRY, self.entry.model_dump_json(indent=1) + "\n")
        return self.entry

    @property
    def entry(self) -> QuantiserEntry:
        return QuantiserEntry(
            factory=self.factory,
            keys=_NAMES[0],
            values=_NAMES[1],
            code_bytes=self.code_bytes,
            xxh3=self.fingerprint,
        )

    @classmethod
    def load(cls, folder: Path, entry: QuantiserEntry | None = None) -> "Quantiser":
        """Returns the codecs that were saved in `folder`.

        Raises DataError when there are none, FAISS is missing, or the files do not match the entry.
        """
        faiss = import_extra("faiss", "quantise")
        if entry is None:
            try:
                entry = QuantiserEntry.model_validate_json((folder / _ENTRY).read_bytes())
            except (OSError, ValidationError) as error:
                raise DataError(f"{folder / _ENTRY}: cannot be read ({error}); train the codec again") from error
        paths = [folder / entry.keys, folder / entry.values]
        missing = [path for path in paths if not path.is_file()]
        if missing or "".join(map(file_checksum, paths)) != entry.xxh3:
            raise DataError(f"{(missing or paths)[0]}: is missing or damaged; copy it again, or write the bank again")
        read = [faiss.deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8)) for path in paths]
        return cls(entry.factory, *read)

    @staticmethod
    def is_saved(folder: Path) -> bool:
        return (folder / _ENTRY).is_file()

    def encode(self, memories: NDArray[Any], dtype: DType) -> Codes:
        """Encodes memories [n, L_mem, 2, H_kv, k, D] -> uint8 [n, L_mem * 2 * H_kv * k * code_bytes]."""
        out = np.empty((*memories.shape[:-1], self.code_bytes), dtype=np.uint8)
        for kind, codec in enumerate(self._codecs):
            vectors = to_float32(memories[:, :, kind], dtype)
            codes = codec.sa_encode(np.ascontiguousarray(vectors.reshape(-1, memories.shape[-1])))
            out[:, :, kind] = codes.reshape(*vectors.shape[:-1], self.code_bytes)
        return out.reshape(len(memories), -1)

    def decode(self, rows: Codes, shape: MemoryShape, dtype: DType) -> NDArray[Any]:
        """Decodes rows uint8 [n, bytes] -> memories [n, L_mem, 2, H_kv, k, D] in the stored type `dtype`."""
        codes = rows.reshape(len(rows), *shape.array[:-1], self.code_bytes)
        out = np.empty((len(rows), *shape.array), dtype=np.float32)
        for kind, codec in enumerate(self._codecs):
            flat = np.ascontiguousarray(codes[:, :, kind]).reshape(-1, self.code_bytes)
            out[:, :, kind] = codec.sa_decode(flat).reshape(out[:, :, kind].shape)
        return from_float32(out, dtype)


def _last(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].split(" in ")[-1]
