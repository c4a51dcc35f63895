"""`launchers/prepare_data.py`: prepares, verifies, and leaves with 2 and one line on bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import DataConfig, DataError, Manifest, PrepareConfig, SourceConfig, TokenizerConfig
from launchers.prepare_data import main, run

LAUNCHER = Path(__file__).parents[3] / "launchers" / "prepare_data.py"


def data_config(folder: Path) -> DataConfig:
    tokenizer = TokenizerConfig(vocab_size=400, train_bytes=50_000)
    source = SourceConfig(kind="python-stdlib")
    settings = PrepareConfig(sources=[source], tokenizer=tokenizer, max_bytes=100_000, workers=1)
    return DataConfig(path=folder, sequence_length=8, prepare=settings)


def test_prepare_then_verify_then_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_config(tmp_path / "data")
    assert isinstance(data.path, Path)
    run(data, verify=False)
    output = capsys.readouterr().out
    assert "python-stdlib" in output
    assert "data is in" in output
    manifest = Manifest.load(data.path)
    assert f"{sum(shard.tokens for shard in manifest.shards if shard.split == 'train'):,}" in output
    run(data, verify=True)
    assert "undamaged" in capsys.readouterr().out
    shard = data.path / manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=shard.name):
        run(data, verify=True)


def test_a_corpus_of_which_nothing_is_held_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("A book. " * 2000)
    source = SourceConfig(kind="text", path=tmp_path / "one.txt")
    for fraction in (1e-6, 0.0):
        tokenizer = TokenizerConfig(vocab_size=270, train_bytes=50_000)
        settings = PrepareConfig(sources=[source], tokenizer=tokenizer, valid_fraction=fraction, workers=1)
        run(DataConfig(path=tmp_path / f"data-{fraction}", sequence_length=8, prepare=settings), verify=False)
        words = " ".join(capsys.readouterr().out.split())
        assert ("raise data.prepare.valid_fraction above 1e-06" in words) == (fraction > 0)


def test_config_without_a_prepare_section(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.prepare is missing"):
        run(DataConfig(path=tmp_path, sequence_length=8), verify=False)


def test_bad_input_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    message = capsys.readouterr().err
    assert "absent.yaml" in message
    assert message.count("\n") == 1


def test_help_teaches_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCHER), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--verify" in done.stdout
    assert "data.path=data/small" in done.stdout
