"""The command for one CUDA device: its cheap parts run here with tiny sizes, all of it where there is a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_parts.report import claims, table

ROOT = Path(__file__).resolve().parents[3]


def run(folder: Path, *arguments: str, **environment: str) -> dict:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(folder), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    log = folder / "gpu.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    return json.loads((folder / "gpu.json").read_text())


ON_THE_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What two parts leave where nothing can be compiled: C++ for the compiled cases takes half a minute."""
    folder, parts = tmp_path_factory.mktemp("gpu"), ("--parts", "parity,llama-paths")
    return run(folder, "--small", *parts, TORCH_COMPILE_DISABLE="1", **ON_THE_CPU), folder


def test_parts_leave_their_results_and_claims_nothing_of_a_cpu(without_compiler: tuple[dict, Path]) -> None:
    report, folder = without_compiler
    assert report["versions"]["torch"] == torch.__version__
    assert report["device"].startswith("CPU") and report["small"] and "--small" in report["command"]
    parity = report["parts"]["parity"]
    assert parity["status"] == "done" and parity["results"]["ok"]
    assert set(parity["results"]["kinds"]) == {"none", "lm2 time", "delta", "lm2 depth", "rmt"}
    assert all(set(claim) == {"claim", "value", "goal", "met"} for claim in report["claims"])
    assert all(claim["met"] is None for claim in report["claims"])
    assert not list(folder.glob(".*")), "a part's notes belong in gpu.json"


def test_a_case_that_fails_costs_no_other_and_lines_are_written_at_once(without_compiler: tuple[dict, Path]) -> None:
    report, folder = without_compiler
    found = report["parts"]["llama-paths"]["results"]
    failed = [
        tuple(case["off"]) for case in found["variants"].values() if "no compiled frames" in case.get("error", "")
    ]
    measured = [tuple(case["off"]) for case in found["variants"].values() if "losses" in case]
    assert found["ok"] and () in failed and ("compile",) in measured
    assert len(failed) + len(measured) == len(found["variants"])
    lines = [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]
    assert all("device" in line for line in lines)
    assert len([line for line in lines if line["part"] == "llama-paths" and "step_seconds" in line]) == len(measured)


@pytest.mark.slow
def test_compiled_cases_have_the_losses_of_the_others(tmp_path: Path) -> None:
    found = run(tmp_path, "--small", "--parts", "llama-paths", **ON_THE_CPU)["parts"]["llama-paths"]["results"]
    losses = {tuple(case["off"]): case["losses"] for case in found["variants"].values() if "losses" in case}
    assert losses[()] == pytest.approx(losses["compile",], rel=1e-2)  # the same model, bf16


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path), "--parts", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no part is called speed" in done.stderr


def case(mfu: float, speed: float, memory: str, flops: float, loop: str = "engine", off: tuple[str, ...] = ()) -> dict:
    """A case as a run on a device leaves it."""
    figures = {"mfu": mfu, "tokens_per_second": speed, "peak_memory_gib": 60.0, "losses": [1.0]}
    return figures | {"memory": memory, "flops_per_token": flops, "loop": loop, "off": list(off)}


def part(*cases: dict) -> dict:
    variants = {f"case {i}": found for i, found in enumerate(cases)} | {"too large": {"error": "out of memory"}}
    return {"status": "done", "seconds": 60.0, "results": {"ok": True, "variants": variants}}


def test_claims_compare_what_is_shipped_with_the_goals() -> None:
    parts = {
        "llama": part(case(0.61, 60e3, "none", 8e9), case(0.5, 50e3, "none", 8e9)),
        "lm2": part(case(0.54, 40e3, "lm2", 10e9), case(0.6, 50e3, "none", 8e9)),
        "engine": part(case(0.7, 62e3, "none", 8e9, "plain"), case(0.9, 90e3, "none", 8e9, "plain", ("compile",))),
    }
    met = {line["claim"]: line["met"] for line in claims(parts, counts=True)}
    assert met["MFU, bf16, 1.2 B Llama, through the engine"] is True
    assert met["MFU, bf16, 1.7 B LM2 with memory, through the engine"] is False
    assert met["memory tax over the ratio of FLOPs, lm2, on the device"] is True  # (50 / 40) / (10 / 8)
    assert met["memory tax over the ratio of FLOPs, delta, on the device"] is None  # not measured
    assert met["engine over a plain PyTorch loop, on the device"] is True  # 62 / 60: a loop without a path is not it
    assert "61.0%" in table(parts) and "too large: out of memory" in table(parts)


def test_a_part_that_did_not_end_meets_no_goal() -> None:
    parts = {"parity": {"status": "timed out", "seconds": 100.0, "results": {"ok": True}}}
    assert claims(parts, counts=True)[0]["met"] is None


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_on_a_device_everything_is_right(tmp_path: Path) -> None:
    report = run(tmp_path, "--small")
    assert {name: part["status"] for name, part in report["parts"].items()} == dict.fromkeys(report["parts"], "done")
