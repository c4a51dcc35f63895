"""What a run finds of its data before it begins."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_prep import DataError, PrepareConfig, SourceConfig, TokenizerConfig, prepare
from tests.unit.training.config_case import TINY
from training.config import RunConfig, parse_config
from training.streams import open_stream, open_validation


def test_held_out_documents_are_evaluated_unless_none_was_to_be(prepared_data: Path, tmp_path: Path) -> None:
    source = SourceConfig(kind="python-stdlib")
    tokenizer = TokenizerConfig(path=prepared_data / "tokenizer.model")
    settings = PrepareConfig(sources=[source], tokenizer=tokenizer, max_bytes=60_000, valid_fraction=0, workers=1)
    prepare(settings, tmp_path / "data", Console(quiet=True))

    def config(folder: Path, valid_fraction: float | None) -> RunConfig:
        data: dict[str, Any] = {"path": str(folder), "sequence_length": 64}
        if valid_fraction is not None:
            data["prepare"] = {"sources": [{"kind": "python-stdlib"}], "valid_fraction": valid_fraction}
        return parse_config(TINY | {"data": data})

    for fraction in (0.0, None):
        assert open_validation(config(tmp_path / "data", fraction)) is None
        assert len(open_stream(config(tmp_path / "data", fraction), "train")) > 0
    with pytest.raises(DataError, match="has 0 tokens: no document was held out"):
        open_validation(config(tmp_path / "data", 0.1))
    for fraction in (0.0, 0.2, None):  # documents that are there are evaluated, whatever the configuration says
        valid = open_validation(config(prepared_data, fraction))
        assert valid is not None and valid.split == "valid"
