"""The `tracking` section of a run's configuration, and where its store is."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class TrackingConfig(BaseModel):
    """The `tracking` section of a run's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="record the run in MLflow")
    experiment: str = Field("memtrain", min_length=1, description="MLflow experiment the run belongs to")
    uri: str | None = Field(
        None,
        description="MLflow store: sqlite:///FILE or http(s)://SERVER; default: the environment variable "
        "MLFLOW_TRACKING_URI, else one database beside all runs, sqlite:///{run.output_dir}/mlflow.db. A server's "
        "user and password belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    log_every_steps: int = Field(1, ge=1, description="send the metrics of every n-th step")
    system_seconds: float = Field(
        10.0, ge=0, description="seconds between two samples of processor, memory, disk, network and GPUs; 0: none"
    )

    def address(self, output_dir: Path) -> str:
        """The store's address: from here, else the environment, else a database in the folder of all runs."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(output_dir / "mlflow.db")


def sqlite_address(file: Path) -> str:
    """The address of an SQLite file: in one, what follows a `?` are options, and `%41` is an A.

    Where those are in the file's path, the driver is named too: MLflow makes folders for an address that begins with
    `sqlite:///`, and would make one with the escaped name.
    """
    path = str(file).replace("%", "%25").replace("?", "%3F")
    return ("sqlite:///" if path == str(file) else "sqlite+pysqlite:///") + path
