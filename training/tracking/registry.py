"""Registers an exported checkpoint as a model in MLflow."""

from pathlib import Path

from training.checkpoint.run_state import RunState, read_run_state
from training.config.tracking import TrackingConfig
from training.errors import ConfigError
from training.tracking import facts
from training.tracking.store import AwayError, RefusedError, Store

FOLDER = "model"  # of the run's artifacts


def registry_of(checkpoint: Path) -> tuple[Store, str]:
    """Return the store and the id of a checkpoint's MLflow run, which is known to exist in the store.

    Raises:
        ConfigError: the checkpoint belongs to no MLflow run, or the store does not have it.
    """
    state, run_folder = read_run_state(checkpoint), checkpoint.resolve().parents[1]
    run_id = state.mlflow_run_id or facts.read_run_id(run_folder)
    if not run_id:
        raise ConfigError(
            f"--register: {checkpoint} belongs to no MLflow run (an average, or trained with tracking.enabled=false); "
            "send its run first with launchers/mlflow_sync.py RUN, or register a checkpoint of a recorded run"
        )
    is_run = (run_folder / "config.yaml").is_file()
    output_dir = run_folder.parent if is_run else Path(state.config["run"]["output_dir"])
    try:
        store = Store(TrackingConfig(**state.config["tracking"]).address(output_dir))
        store.look(run_id)
    except (AwayError, RefusedError) as error:
        raise ConfigError(
            f"--register: the MLflow run {run_id} of {checkpoint} cannot be found ({error}); start its server, or give "
            "the store's address in MLFLOW_TRACKING_URI"
        ) from None
    return store, run_id


def register_model(name: str, exported: Path, checkpoint: Path) -> str:
    """Upload the folder `exported` to the checkpoint's MLflow run, and register it as a version of the model `name`.

    Returns:
        The version; `mlflow artifacts download -u models:/NAME/VERSION` downloads the folder.

    Raises:
        ConfigError: as `registry_of`, or the store refuses the upload.
    """
    store, run_id = registry_of(checkpoint)
    state = read_run_state(checkpoint)
    folder = f"{FOLDER}/{checkpoint.name}"
    try:
        store.artifact(run_id, exported, folder)
        return store.register(name, run_id, folder, _tags(state))
    except (AwayError, RefusedError) as error:
        raise ConfigError(f"--register: {store.uri} did not take {exported} as {name!r}: {error}") from None


def _tags(state: RunState) -> dict[str, str]:
    run = state.config["run"]["name"]
    return {"run": run, "step": str(state.step), "tokens": str(state.tokens), "phase": state.phase}
