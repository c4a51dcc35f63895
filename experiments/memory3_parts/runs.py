"""The project's own commands on a small configuration: prepare, warm up, continue with references and without."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Settings = dict[str, Any]


def command(script: str, *arguments: str) -> None:
    """Runs a launcher and shows what it says; ends the benchmark when it fails."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    print(f"$ python launchers/{script} {' '.join(arguments)}", flush=True)
    subprocess.run(
        [sys.executable, str(ROOT / "launchers" / script), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    )


def phase(name: str, memory: bool, tokens: int, peak: float, init: str, mix: Settings | None, step: int) -> Settings:
    tokens = max(1, tokens // step) * step
    rising, falling = min(8 * step, tokens // 4), tokens // 2
    rate = {"schedule": "wsd", "peak": peak, "warmup_tokens": rising, "decay_tokens": falling}
    if name == "warmup":
        rate["decay_tokens"] = 0
    found: Settings = {"name": name, "memory": memory, "tokens": tokens, "tokens_per_step": step, "lr": rate}
    if init:
        found["init_from"] = f"checkpoint:{init}"
    if mix:
        found["mix"] = mix
    return found


def two_stages(base: Settings, work: Path, warmup: int, continual: int, mixes: tuple[Any, Any]) -> dict[str, Path]:
    """Trains on `base`'s data: the warm-up, and from its checkpoint the same steps with references and without.

    warmup, continual: tokens. mixes: of the sources, in the two stages. Returns the folders of the three runs.
    """
    path = work / "data.yaml"
    step = base["phases"][0]["tokens_per_step"]
    peak = base["phases"][0]["lr"]["peak"]
    runs: dict[str, Path] = {}
    for name, memory in (("warmup", False), ("with", True), ("without", False)):
        stage = "warmup" if name == "warmup" else "continual"
        init = "" if name == "warmup" else str(newest(runs["warmup"]))
        # The continual runs read the same samples as each other, in another order than the warm-up did.
        run = {"name": name, "output_dir": str(work / "runs"), "seed": int(name != "warmup")}
        tokens, mix = (warmup, mixes[0]) if name == "warmup" else (continual, mixes[1])
        rate = peak if name == "warmup" else peak / 2
        phases = [phase(stage, memory, tokens, rate, init, mix, step)]
        settings = base | {"run": run, "phases": phases, "tracking": {"enabled": False}}
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        if name == "warmup":
            command("prepare_data.py", "--config", str(path))
        command("pretrain.py", "--config", str(path))
        runs[name] = work / "runs" / name
    return runs


def newest(run: Path) -> Path:
    """The run's latest checkpoint."""
    checkpoints = run / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip()


def last_loss(run: Path) -> float:
    """Nats a token on the held-out split at the end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line["valid_loss"] for line in lines if "valid_loss" in line][-1])
