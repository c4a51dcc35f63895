"""Documents to token shards, and token shards to training samples."""

from .batch import Batch
from .config import CacheConfig, DataConfig, PrepareConfig, SourceConfig, TokenizerConfig
from .errors import DataError
from .folder import PreparedFolder
from .manifest import Manifest
from .prepare import prepare
from .references import NeighbourTable, ReferenceStore
from .stream import SampleOrigin, TokenStream
from .tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "CacheConfig",
    "DataConfig",
    "DataError",
    "Manifest",
    "NeighbourTable",
    "PrepareConfig",
    "PreparedFolder",
    "ReferenceStore",
    "SampleOrigin",
    "SourceConfig",
    "TokenStream",
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
    "prepare",
]
