"""`launchers/inspect_data.py`: what it shows is what the stream gives."""

from pathlib import Path

import pytest
import yaml

from data_prep import TokenStream
from launchers.inspect_data import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_file(prepared_data: Path, tmp_path: Path) -> Path:
    run = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    run["data"] = {"path": str(prepared_data), "sequence_length": 512}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path / "run.yaml"


def test_overview_and_histogram(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "lengths.png"
    assert main(["--config", str(run_file), "--histogram", str(png)]) == 0
    output = capsys.readouterr().out
    for word in ("python-stdlib", "median", "epochs", "warmup", "100.0%"):
        assert word in output
    assert png.read_bytes().startswith(b"\x89PNG")


def test_sample_is_shown_with_its_boundaries(
    run_file: Path, prepared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = TokenStream(prepared_data, sequence_length=512, seed=0)
    g = next(g for g in range(1000) if stream.batch([g]).document_ids.max() == 1)
    assert main(["--config", str(run_file), "--sample", str(g)]) == 0
    output = capsys.readouterr().out
    assert "──── document 1 ────" in output
    assert "──── document 2 ────" not in output
    assert f"sample {g:,}: python-stdlib, epoch 0" in output
    assert "511 of 512 labels" in output
    assert "</s>" in output


def test_bad_sample_is_code_2(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(run_file), "--sample", "-3"]) == 2
    assert "sample index is -3" in capsys.readouterr().err


def test_a_histogram_that_cannot_be_written_is_code_2(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--config", str(run_file), "--histogram", str(tmp_path / "file" / "x.png")]) == 2
    assert "--histogram: " in capsys.readouterr().err


def test_epochs_agree_with_the_samples(prepared_data: Path) -> None:
    stream = TokenStream(prepared_data, sequence_length=512, seed=0)
    for g in (0, 1, len(stream) - 1, len(stream), 3 * len(stream) + 7):
        origin = stream.describe(g)
        assert int(stream.epochs(g)[origin.source]) == origin.epoch
    assert stream.epochs(2 * len(stream)) == {"python-stdlib": 2.0}
