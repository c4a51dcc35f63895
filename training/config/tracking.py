"""The `tracking` section of a run's configuration, and the address of its MLflow store."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.sources.places import local_path


class TrackingConfig(BaseModel):
    """The `tracking` section of a run's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(True, description="record the run in MLflow")
    experiment: str = Field("memtrain", min_length=1, max_length=500, description="MLflow experiment of the run")
    uri: str | None = Field(
        None,
        description="MLflow store: sqlite:///FILE or http(s)://SERVER; default: the environment variable "
        "MLFLOW_TRACKING_URI, else one database beside all runs, sqlite:///{run.output_dir}/mlflow.db. A server's "
        "user and password belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    log_every_steps: int = Field(1, ge=1, description="send the metrics of every n-th step")
    system_seconds: float = Field(
        10.0, ge=0, description="seconds between two samples of CPU, memory, disk, network and GPUs; 0: no samples"
    )

    @field_validator("uri")
    @classmethod
    def _home(cls, uri: str | None) -> str | None:
        """Replace a `~` at the start of a database file's path by the home folder."""
        begin = "sqlite:///"
        return begin + str(local_path(uri.removeprefix(begin))) if uri and uri.startswith(begin + "~") else uri

    def address(self, output_dir: Path) -> str:
        """Return the store's address: `uri`, else MLFLOW_TRACKING_URI, else a database in the folder of all runs."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(output_dir / "mlflow.db")


def sqlite_address(file: Path) -> str:
    """Return the address of an SQLite file, with `%` and `?` of its path escaped.

    In an address, options follow a `?`, and `%41` means A. An escaped address names the driver too, because MLflow
    makes the folders of an address that begins with `sqlite:///` and would use the escaped name for them.
    """
    path = str(file).replace("%", "%25").replace("?", "%3F")
    return ("sqlite:///" if path == str(file) else "sqlite+pysqlite:///") + path
