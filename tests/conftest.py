"""What several test folders share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

TOKENIZER_PIECES = 512


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers of this test run see; what is made in it once is made under a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def prepared_data(shared_folder: Path) -> Path:
    """A small prepared folder: Python's standard library, a tokenizer of 512 pieces, both splits.  Read only."""
    from rich.console import Console

    from data_prep import PrepareConfig, SourceConfig, TokenizerConfig, prepare

    folder = shared_folder / "prepared"
    settings = PrepareConfig(
        sources=[SourceConfig(kind="python-stdlib")],
        tokenizer=TokenizerConfig(vocab_size=TOKENIZER_PIECES, train_bytes=100_000),
        max_bytes=1_000_000,
        valid_fraction=0.2,
        workers=1,
    )
    with FileLock(f"{folder}.lock"):
        prepare(settings, folder, Console(quiet=True))  # at once where another worker has made it
    return folder


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Transformers copies the code of exported folders here, not into the user's cache.

    One for all tests: the package that Python imports from it stays imported.
    """
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("code")
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(cache))
        patch.setattr("transformers.utils.HF_MODULES_CACHE", str(cache))
        yield cache
