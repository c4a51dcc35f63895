"""What several test folders share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

gc.disable()  # until all tests are imported: nothing of what is made meanwhile can be collected
TOKENIZER_PIECES = 512
# The files that take longest, by CPU time: begun first, so that no worker is left with one of them at the end.
LONGEST = (
    "distributed/test_parity",
    "distributed/test_parity_sharded",
    "e2e/test_pretrain",
    "e2e/test_own_memory",
    "e2e/test_starts",
    "e2e/test_mlflow",
    "e2e/test_bank_launcher",
    "e2e/test_evaluate",
    "e2e/test_report",
    "unit/benchmarks/test_gpu_benchmark",
    "distributed/test_checkpoint",
    "unit/training/test_plan_state",
    "e2e/test_checkpoint_launcher",
    "e2e/test_export_launcher",
    "e2e/test_as_typed",
    "unit/launchers/test_package",
    "distributed/test_resume",
    "distributed/test_explicit_parity",
    "unit/data_prep/test_data_tasks",
    "unit/test_front_door",
    "unit/model/test_model_contract",
    "unit/evaluation/test_harness",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""
    places = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # later collections pass over the imported modules


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
def empty_store(shared_folder: Path) -> Path:
    """An MLflow database without runs, for tests to copy: MLflow runs all its migrations to create one."""
    from mlflow import MlflowClient

    path = shared_folder / "empty-mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


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
