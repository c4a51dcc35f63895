"""The version of the project, in this place alone: setup.py, `--version`, checkpoints and MLflow read it here."""

__version__ = "0.2.0.dev0"
