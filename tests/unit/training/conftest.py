"""Fixtures of the tests of a run's parts."""

from pathlib import Path

import pytest
import yaml

from tests.unit.training.config_case import TINY


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """`TINY` as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path
