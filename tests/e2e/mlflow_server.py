"""A real `mlflow server` with users and passwords on loopback, and a PostgreSQL for it where that is installed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.distributed.spawn import free_port
from tests.e2e.commands import wait_until

USER, PASSWORD = "admin", "correct-horse-battery"
CREDENTIALS = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}


@dataclass
class MlflowServer:
    """`mlflow server --app-name basic-auth`; what it keeps outlives it."""

    folder: Path
    backend: str
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it, and return at once."""
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", self.host]
        command += ["--port", str(self.port), "--workers", "1", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # its own jobs judge traces, and would take processors from the training
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        secrets = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "only for tests", "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | settings | secrets,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        wait_until(self._answers, 120, f"the MLflow server answers ({self.folder / 'server.log'})")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """With -9, its workers too."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def get(self, what: str, **arguments: str) -> dict[str, Any]:
        """An answer of its REST API."""
        url = f"{self.uri}/api/2.0/mlflow/{what}"
        answer = requests.get(url, params=arguments, auth=(USER, PASSWORD), timeout=60)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def runs(self, name: str) -> list[dict[str, Any]]:
        """All runs of that name."""
        experiment = self.get("experiments/get-by-name", experiment_name="memtrain")["experiment"]["experiment_id"]
        body = {"experiment_ids": [experiment], "filter": f"attributes.run_name = '{name}'"}
        url = f"{self.uri}/api/2.0/mlflow/runs/search"
        answer = requests.post(url, json=body, auth=(USER, PASSWORD), timeout=60)
        assert answer.ok, answer.text
        found: list[dict[str, Any]] = answer.json().get("runs", [])
        return found

    def history(self, run_id: str, key: str) -> list[dict[str, Any]]:
        """Every value of a metric, by step and then time."""
        points: list[dict[str, Any]] = []
        token = ""
        while True:
            page = {"page_token": token} if token else {}
            answer = self.get("metrics/get-history", run_id=run_id, metric_key=key, max_results="25000", **page)
            points += answer.get("metrics", [])
            token = answer.get("next_page_token", "")
            if not token:
                return sorted(points, key=lambda point: (int(point["step"]), int(point["timestamp"])))

    def artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """Names of a run's files."""
        path = {"path": folder} if folder else {}
        return sorted(file["path"] for file in self.get("artifacts/list", run_id=run_id, **path).get("files", []))


@contextlib.contextmanager
def mlflow_server(folder: Path, backend: str, host: str = "127.0.0.1") -> Iterator[MlflowServer]:
    """A server that answers; gone afterwards."""
    server = MlflowServer(folder, backend, host)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A PostgreSQL of its own; its address.  It refuses to run as root, so root becomes `postgres` for it."""
    folder = Path(tempfile.mkdtemp(prefix="memtrain-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user, user)
    port, data = free_port(), folder / "data"

    def do(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

    try:
        do("initdb", "--auth=trust", "--username=mlflow", "--no-sync", "--no-instructions")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        do("pg_ctl", "-w", "-l", str(folder / "log.txt"), "-o", options, "start")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            do("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
