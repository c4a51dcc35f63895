"""The memory of docs/memory.md's example, through every command, without a change to any file of the library."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers.dynamic_module_utils as dynamic
import yaml

from tests.e2e.attempts import Site
from tests.e2e.commands import GENERATE, PRETRAIN, ROOT, Done, environment, run_warm
from tests.e2e.own_memory import example, installed
from training.checkpoint.manifest import latest_checkpoint

pytestmark = pytest.mark.usefixtures("code_cache")
STEPS = 12
LOADS = """
import sys, torch
from transformers import AutoModelForCausalLM
net = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.arange(20).unsqueeze(0)
print(net.generate(ids, max_new_tokens=12, do_sample=False)[0, 20:].tolist())
print(sorted(n for n in sys.modules if n.startswith(("ema_memory", "model", "training"))))
"""


@dataclass(frozen=True)
class Place:
    site: Site
    env: dict[str, str]

    def command(self, script: Path, *arguments: str, code: int = 0) -> Done:
        extra = self.env | {"HF_MODULES_CACHE": dynamic.HF_MODULES_CACHE}
        done = run_warm(script, *arguments, cwd=self.site.folder, extra=extra)
        assert done.code == code, done.err + done.out
        return done

    def python(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        """In a process of its own, which has imported nothing yet."""
        found = environment(self.env if env is None else env)
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=found, cwd=cwd or self.site.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def place(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run `own` whose second phase has the memory; it was stopped and continued inside that phase."""
    env = installed(tmp_path_factory.mktemp("packages"))
    made = Place(Site.make(tmp_path_factory.mktemp("own"), prepared_data, STEPS), env)
    path = made.site.folder / "tiny.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"]["memory"] = {"kind": "ema", "heads": 2, "half_life": 12}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = ("--config", "tiny.yaml", "run.name=own")
    made.command(PRETRAIN, *arguments, "training.stop_after_steps=9", code=75)
    made.command(PRETRAIN, *arguments)
    return made


def test_the_example_is_short() -> None:
    assert sum(len(text.splitlines()) for text in example().values()) < 120


@pytest.mark.timeout(600)  # its own tests, in a process of their own
def test_it_keeps_the_rules_of_every_memory(place: Place) -> None:
    files = [f"tests/unit/model/test_model_{name}.py" for name in ("contract", "generation")]
    files += [f"tests/unit/training/test_plan_{name}.py" for name in ("memory", "stages")]
    env = place.env | {"MEMTRAIN_TEST_KINDS": "ema"}
    done = place.python("-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", "ema", *files, env=env, cwd=ROOT)
    ran = [line for line in done.out.splitlines() if "::" in line]
    assert sum("ema" in line and "PASSED" in line for line in ran) >= 20
    assert not any(word in line for line in ran for word in ("FAILED", "ERROR"))


def test_it_learns_and_is_used(place: Place) -> None:
    lines = [json.loads(line) for line in (place.site.run("own") / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.05
    last = [line for line in lines if "valid_loss" in line][-1]
    assert abs(last["ablated_valid_loss"] - last["valid_loss"]) > 1e-6


def test_it_was_resumed_as_if_never_stopped(place: Place) -> None:
    place.command(PRETRAIN, "--config", "tiny.yaml", "run.name=whole")
    own, whole = (
        {
            line["step"]: line["loss"]
            for text in (place.site.run(name) / "metrics.jsonl").read_text().splitlines()
            if "loss" in (line := json.loads(text))
        }
        for name in ("own", "whole")
    )
    assert own == whole


def test_it_is_planned(place: Place) -> None:
    plan = place.command(ROOT / "launchers" / "plan.py", "--config", "tiny.yaml", "--devices", "h100:2").out
    assert f"{2 * (3 * 16**2 + 2):,} memory (ema)" in plan


def test_it_is_exported_with_its_code_and_reloaded(place: Place) -> None:
    folder = place.site.folder / "exported"
    done = place.command(ROOT / "launchers" / "export.py", "runs/own", str(folder))
    assert "largest logit difference" in done.out
    assert "| memory | ema |" in (folder / "README.md").read_text(encoding="utf-8")
    # neither this project nor the package: what the folder carries is enough
    alone = {"PYTHONPATH": "", "HF_MODULES_CACHE": str(place.site.folder / "cache")}
    script = place.site.folder / "loads.py"
    script.write_text(LOADS, encoding="utf-8")
    written, modules = place.python("-P", str(script), str(folder), env=alone).out.strip().splitlines()[-2:]
    assert len(json.loads(written)) == 12
    assert modules == "[]"


def test_it_generates_from_its_checkpoint(place: Place) -> None:
    assert latest_checkpoint(place.site.run("own") / "checkpoints") is not None
    arguments = ("--checkpoint", "runs/own", "--prompt", "def main(", "--max-tokens", "20", "--temperature", "0")
    assert place.command(GENERATE, *arguments).out.strip()


def test_without_the_package_its_kind_is_unknown_and_the_known_ones_are_named(place: Place) -> None:
    done = run_warm(PRETRAIN, "--config", "tiny.yaml", "run.name=other", cwd=place.site.folder)
    assert done.code == 2 and "model.memory.kind: 'ema' is refused" in done.err
    assert "'none', 'lm2', 'delta' or 'rmt'" in done.err
