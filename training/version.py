"""The version of the project, defined only here; setup.py, `--version`, checkpoints and MLflow read it."""

__version__ = "0.2.0.dev0"
