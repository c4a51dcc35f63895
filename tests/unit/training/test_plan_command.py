"""The command: tables, picture, exit codes; and the lines a run begins with."""

import runpy
import sys
import time
from pathlib import Path

import pytest

from tests.pictures import coloured
from tests.reference.small import one_thread
from training.config import load_config
from training.errors import ConfigError
from training.planning import summary
from training.planning.devices import DEVICES
from training.planning.scale import IDEAL, SCALE, SPEED, parse_scale

__all__ = ["one_thread"]  # measuring a CPU sets the number of threads

ROOT = Path(__file__).parents[3]
LARGE, SMALL = ROOT / "configs" / "lm2_1.7b.yaml", ROOT / "configs" / "quickstart.yaml"


def plan(*arguments: str | Path) -> int:
    main = runpy.run_path(str(ROOT / "launchers" / "plan.py"), run_name="plan")["main"]
    return int(main([str(argument) for argument in arguments]))


def test_a_plan_ends_with_what_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", LARGE, "--devices", "h200:64") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("1,638,795,392 parameters", "64 H200", "optimizer state", "pipeline bubble", "a checkpoint: 19.7 GB"):
        assert part in out
    assert "products at 78% of H200's dense peak" in out
    assert "\nparallel.tensor=" in out
    assert "the configuration's own topology takes" in out
    assert "─" not in out  # plain in a pipe
    assert max(map(len, out.splitlines())) < 250


def test_documents_leave_less_of_attention(capsys: pytest.CaptureFixture[str]) -> None:
    shares, speeds = [], []
    for more in ((), ("--document-tokens", "700")):
        assert plan("--config", LARGE, "--devices", "h200:8", "--as-is", *more) == 0
        lines = capsys.readouterr().out.splitlines()
        heading = next(i for i, line in enumerate(lines) if "in documents" in line)
        memory = lines[heading + 2].split()
        shares.append([float(value.rstrip("%")) for value in memory[-3:-1]])
        speeds.append(float(memory[8]))
    assert shares[0][0] == shares[0][1] < shares[1][0]
    assert shares[1][0] - 1 > shares[1][1] > shares[1][0] / 2
    assert speeds[1] < 0.97 * speeds[0]  # seconds of a step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h200:8", "0"), "0 must be at least 1"),
        (("cpu:1", "700"), "attention on a CPU computes also what documents hide"),
    ],
)
def test_documents_that_cannot_be_planned(
    arguments: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    devices, documents = arguments
    assert plan("--config", SMALL, "--devices", devices, "--document-tokens", documents) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: --document-tokens: ") and message in err


def test_a_small_models_checkpoint_is_told_in_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", SMALL, "--devices", "h200:1") == 0
    assert "a checkpoint: 16.6 MB" in capsys.readouterr().out


def test_its_own_topology_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", LARGE, "--devices", "h200:8", "--as-is", "parallel.tensor=2") == 0
    assert "memory of the fullest rank" in capsys.readouterr().out
    crowded = ("training.micro_batch_size=8", "training.activation_checkpointing=none")
    assert plan("--config", LARGE, "--devices", "a100:8", "--as-is", *crowded) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "the largest part is activations" in err
    assert "the fastest that fits: parallel.tensor=" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "h200:12", "parallel.tensor=8"), "the nearest are 8 or 16 devices"),
        (("--devices", "tpu:8"), "--devices: 'tpu:8'"),
        (("parallel.tensr=2",), "did you mean 'tensor'?"),
        (("--scale", "8,many"), "--scale: '8,many'"),
    ],
)
def test_bad_input_leaves_with_2(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", LARGE, *arguments) == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        plan("--help")
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200:64" in out
    assert "exit codes" in out


def test_scale_draws_what_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", SMALL, "--devices", "a100", "--scale", "1,2,4,7", "--out", tmp_path / "plans") == 0
    out = capsys.readouterr().out
    assert "left out: --devices: 7" in out
    picture = tmp_path / "plans" / "plan-quickstart.png"
    assert coloured(picture, SPEED) > 1000 and coloured(picture, IDEAL) > 500
    assert [path.name for path in (tmp_path / "plans").iterdir()] == ["plan-quickstart.png"]


def test_a_cpu_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config", SMALL, "--devices", "cpu:2", "--as-is") == 0
    out = capsys.readouterr().out
    assert "measured here with 1 thread(s) a rank" in out
    assert "2 CPU" in out


def test_scales() -> None:
    assert parse_scale("") == list(SCALE)
    assert parse_scale("64, 8,64") == [8, 64]
    with pytest.raises(ConfigError, match="--scale: '0'"):
        parse_scale("0")


def test_a_run_begins_with_a_few_lines_at_once() -> None:
    config = load_config(LARGE)
    begin = time.process_time()
    lines = summary(config, 64, DEVICES["h200"])
    assert time.process_time() - begin < 0.2
    assert 2 <= len(lines) <= 4
    assert "1,638.8 M parameters" in lines[0]
    assert "planned memory" in lines[1]
    assert len(summary(config, 64, None)) == 1


def test_planning_needs_no_trainer() -> None:
    """No device library is imported for a plan on GPUs: it is as fast as its formulas."""
    import subprocess

    code = (
        "import sys; from training.planning.command import plan_one; from training.config import load_config; "
        f"from pathlib import Path; plan_one(load_config(Path({str(SMALL)!r})), 'h200', 2, False, None); "
        "print(sorted({'torch', 'deepspeed', 'megatron', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
