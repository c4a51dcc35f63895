"""Documents to token shards, and token shards to training samples."""

from data_prep.config import CacheConfig, DataConfig, PrepareConfig, SourceConfig, TokenizerConfig
from data_prep.errors import DataError
from data_prep.preparation.prepare import prepare
from data_prep.references import NeighbourTable, ReferenceStore
from data_prep.shards.folder import PreparedFolder
from data_prep.shards.manifest import Manifest
from data_prep.stream.batch import Batch
from data_prep.stream.token_stream import SampleOrigin, TokenStream
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer

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
