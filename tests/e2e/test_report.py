"""From runs to the page by the commands people type: ablation, interpretation, evaluation's files, report, browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import TOKENIZER_PIECES
from tests.e2e.commands import PRETRAIN, ROOT, plain, run, run_warm
from tests.pictures import inked

ABLATION, INTERPRET, REPORT = (ROOT / "launchers" / f"{name}.py" for name in ("ablation", "interpret", "report"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH = "<script>document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script></body>"


@pytest.fixture(scope="module")
def place(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny configuration, and a family of it."""
    folder = tmp_path_factory.mktemp("report")
    phase = {"name": "memory", "memory": True, "tokens": 6 * 128, "tokens_per_step": 128, "lr": {"peak": 1e-2}}
    config = {
        "run": {"name": "tiny", "output_dir": "runs"},
        "data": {"path": str(prepared_data), "sequence_length": 32},
        "model": {
            "vocab_size": TOKENIZER_PIECES, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
            "ffn_size": 64, "segment_length": 16, "memory": {"kind": "delta", "heads": 2},
        },
        "phases": [phase],
        "training": {"micro_batch_size": 4, "precision": "fp32", "eval_every_steps": 2, "eval_samples": 4},
        "tracking": {"enabled": False},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    family = {"base": "tiny.yaml", "runs": {"first-1": ["model.memory.layers=1"], "all": []}}
    (folder / "blocks.yaml").write_text(yaml.safe_dump(family, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The folder of a finished run, with its interpretation."""
    done = run_warm(PRETRAIN, "--config", "tiny.yaml", cwd=place)
    assert done.code == 0, done.err
    (place / "prompt.txt").write_text("def f(x):\n    return x + 1\n" * 8)
    done = run_warm(
        INTERPRET, "--checkpoint", "runs/tiny", "--prompt-file", "prompt.txt", "--max-tokens", "3", cwd=place
    )
    assert done.code == 0, done.err
    return place / "runs" / "tiny"


@pytest.fixture(scope="module")
def page(finished: Path, place: Path) -> Path:
    done = run_warm(REPORT, "runs/tiny", "--output", "page", cwd=place)
    assert done.code == 0, done.err
    assert done.out.split() == ["page/index.html", "page/report.md"]
    return place / "page" / "index.html"


def test_interpretation_of_a_trained_run(finished: Path, place: Path) -> None:
    folder = finished / "interpretation"
    found = json.loads((folder / "interpretation.json").read_text())
    assert found["kind"] == "delta" and len(found["tokens"]) == found["prompt_tokens"] + 3
    assert all(layer["error"] < 1e-5 for layer in found["layers"])
    for name in ("heatmap-00", "heatmap-01", "over-time-00", "course", "ablated"):
        assert inked(folder / f"{name}.png") > 0.02, name
    assert "got back" in (folder / "index.html").read_text()


def test_a_prompt_may_stand_on_the_command_line(finished: Path, place: Path) -> None:
    text = (place / "prompt.txt").read_text()
    common = ("--checkpoint", "runs/tiny", "--prompt", text, "--max-tokens", "3", "--output", "typed")
    assert run_warm(INTERPRET, *common, cwd=place).code == 0
    typed, read = (
        json.loads((f / "interpretation.json").read_text()) for f in (place / "typed", finished / "interpretation")
    )
    assert typed["tokens"] == read["tokens"]


def test_what_interpret_refuses(finished: Path, place: Path) -> None:
    done = run_warm(INTERPRET, "--checkpoint", "runs/tiny", "--prompt", "short", "--output", "x", cwd=place)
    assert done.code == 2 and "give at least 18 tokens" in done.err and not (place / "x").exists()
    done = run_warm(INTERPRET, "--checkpoint", "runs/none", "--prompt", "short", cwd=place)
    assert done.code == 2 and "runs/none does not exist and is no checkpoint" in done.err


def test_the_page_shows_the_run_and_says_what_is_missing(page: Path) -> None:
    html = page.read_text()
    assert "What the memory does" in html and "delta, all 2" in html
    assert "python launchers/evaluate.py --checkpoint runs/tiny --tasks babilong" in html
    assert "launchers/interpret.py --checkpoint runs/tiny --prompt-file FILE" not in html, "it has been made"
    assert len(re.findall("<svg", html)) >= 6


def test_report_refuses_what_is_no_run_and_writes_nothing(place: Path) -> None:
    done = run_warm(REPORT, "runs", "blocks.yaml", "--output", "nothing", cwd=place)
    assert done.code == 2 and not (place / "nothing").exists()
    assert "runs is no run's folder" in done.err and "blocks.yaml" in done.err


def test_ablation_prints_the_commands_one_would_type(place: Path) -> None:
    done = run_warm(ABLATION, "--config", "blocks.yaml", "--dry-run", "run.seed=3", cwd=place)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("#")]
    assert [line.split(" --config ")[1] for line in lines] == [
        "tiny.yaml run.name=blocks-first-1 model.memory.layers=1 run.seed=3",
        "tiny.yaml run.name=blocks-all run.seed=3",
    ]
    assert not (place / "runs" / "blocks-all").exists()
    done = run_warm(ABLATION, "--config", "blocks.yaml", "--dry-run", "--cluster", "c.yaml", cwd=place)
    assert all("submit.py --cluster c.yaml --config tiny.yaml" in line for line in done.out.splitlines()[1::2])
    done = run_warm(ABLATION, "--config", "blocks.yaml", "model.memory.layer=3", cwd=place)
    assert done.code == 2 and done.err.count("did you mean 'layers'?") == 2
    done = run_warm(ABLATION, "--config", "tiny.yaml", cwd=place)
    assert done.code == 2 and "a family's file has base" in done.err


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs" / "ablation").glob("*.yaml")))
def test_shipped_families(name: str) -> None:
    from training.config.family import load_family

    members = load_family(ROOT / "configs" / "ablation" / name)
    blocks = [len(m.config.model.memory.memory_layers(m.config.model.num_layers)) for m in members]
    assert blocks == ([0, 1, 3, 6, 8] if "small" in name else [0, 1, 6, 12, 16])
    assert len({str(m.config.phases[0].tokens) for m in members}) == 1
    assert all(m.config.phases[0].memory == bool(n) for m, n in zip(members, blocks, strict=True))


@pytest.mark.slow
def test_ablation_runs_all_and_goes_on_after_a_stop(place: Path) -> None:
    command = plain(ABLATION, "--config", "blocks.yaml")
    stopped = run([*command, "training.stop_after_steps=2"], place)
    assert stopped.code == 75 and not (place / "runs" / "blocks-all").exists()
    done = run(command, place)
    assert done.code == 0, done.err
    done = run(plain(REPORT, "runs/blocks-first-1", "runs/blocks-all", "--output", "figure5"), place)
    assert done.code == 0, done.err
    html = (place / "figure5" / "index.html").read_text()
    assert "memory: delta, first 1 of 2" in html and "memory: delta, all 2" in html


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_fits_the_window(page: Path, tmp_path: Path, width: int) -> None:
    """Tables and figures scroll by themselves, the page does not; a screenshot is made of it."""
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", WIDTH))
    dom = browser(tmp_path, width, "--dump-dom", probe)
    found = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert found, dom[:500]
    inner, scroll = map(int, found.groups())
    assert inner <= width and scroll <= inner
    browser(tmp_path, width, f"--screenshot={tmp_path / 'page.png'}", page)
    assert inked(tmp_path / "page.png") > 0.02


def browser(folder: Path, width: int, action: str, page: Path) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000", action, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
