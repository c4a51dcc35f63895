"""What several test folders share."""

from pathlib import Path

import pytest

TOKENIZER_PIECES = 512


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared folder: Python's standard library, a tokenizer of 512 pieces, both splits.  Read only."""
    from rich.console import Console

    from data_prep import PrepareConfig, SourceConfig, TokenizerConfig, prepare

    folder = tmp_path_factory.mktemp("prepared") / "data"
    settings = PrepareConfig(
        sources=[SourceConfig(kind="python-stdlib")],
        tokenizer=TokenizerConfig(vocab_size=TOKENIZER_PIECES, train_bytes=100_000),
        max_bytes=1_000_000,
        valid_fraction=0.2,
        workers=1,
    )
    prepare(settings, folder, Console(quiet=True))
    return folder
