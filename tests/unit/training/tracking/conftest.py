"""A folder of runs, and a real MLflow server that comes and goes."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.training.tracking.case import Serving


@pytest.fixture(scope="package")
def runs(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with their database, a space and an @ in its path."""
    folder = tmp_path_factory.mktemp("tracking") / "my runs@home"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Serving]]:
    """Starts a server, anew on a port that one had; what it keeps outlives it."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    every: list[Serving] = []

    def serve(port: int = 0) -> Serving:
        running = make_server("127.0.0.1", port, app, threaded=True)
        every.append(Serving(running, threading.Thread(target=running.serve_forever)))
        every[-1].thread.start()
        return every[-1]

    yield serve
    for one in every:
        if one.thread.is_alive():
            one.stop()


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address from the environment, and a current directory in which anything written would be seen."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
