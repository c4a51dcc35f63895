"""The product as people start it: data from Python's library, `deepspeed launchers/pretrain.py`, a kill, a resume."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.common import Notes, Setting, need_deepspeed

ROOT = Path(__file__).resolve().parents[2]
WAIT = 90.0  # seconds one start of the run may take
LINES = 40  # of a command's output that are kept
PHASES, CHECKPOINT, KILL_AT = (12, 28), 5, 17  # steps of each phase; the kill falls into the second
TOKENS = 16 * 256  # of a step
# nats between two runs on a GPU, where FlashAttention adds the queries' gradients in no fixed order; none on a CPU
TOLERANCE = 0.05


def overrides(setting: Setting, folder: Path) -> list[str]:
    """A small model in two phases, bf16 as the shipped sizes; nothing leaves `folder`."""
    large = {} if setting.small else {"model.hidden_size": 512, "model.num_heads": 8, "model.ffn_size": 1024}
    values: dict[str, Any] = {
        "run.output_dir": folder / "runs",
        "data.path": folder / "data",
        "data.sequence_length": 256,
        "data.prepare.max_bytes": 2_000_000,
        "data.prepare.valid_fraction": 0.2,
        "data.prepare.tokenizer.train_bytes": 300_000,
        "data.prepare.tokenizer.vocab_size": 1024,
        "model.vocab_size": 1024,
        "model.num_layers": 2,
        "training.precision": "bf16",
        "training.eval_every_steps": 10,
        "training.eval_samples": 16,
        "checkpoint.every_steps": CHECKPOINT,
        "tracking.enabled": "false",
        **large,
    }
    for index, steps in enumerate(PHASES):
        values |= {f"phases.{index}.tokens": steps * TOKENS, f"phases.{index}.tokens_per_step": TOKENS}
        values |= {f"phases.{index}.lr.warmup_tokens": 2 * TOKENS, f"phases.{index}.lr.decay_tokens": 0}
    return [f"{key}={value}" for key, value in values.items()]


def real_run(setting: Setting, notes: Notes) -> None:
    """Prepare, train with a `kill -9` in the second phase, go on, train once more without a kill: the same losses."""
    need_deepspeed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--config", "configs/quickstart.yaml", *overrides(setting, folder)]
        notes.add(prepare=called([sys.executable, "launchers/prepare_data.py", *options]))
        if notes.values["prepare"]["code"] != 0:
            raise RuntimeError("launchers/prepare_data.py failed; gpu.log has what it said")
        whole, killed = (launch(options, run) for run in ("whole", "killed"))
        uninterrupted, interrupted = Command(whole), Command(killed)  # side by side: nothing here is a speed
        notes.add(killed=interrupted.kill_at(folder / "runs" / "killed" / "metrics.jsonl"))
        notes.add(whole=uninterrupted.until_end())
        notes.add(resumed=Command(killed).until_end())
        expected, found = losses(folder, "whole"), losses(folder, "killed")
    apart = max((abs(a - found[step]) for step, a in expected.items() if step in found), default=math.inf)
    notes.add(
        steps=len(expected),
        first_loss=min(expected.items(), default=None),
        last_loss=max(expected.items(), default=None),
        bit_for_bit=expected == found,
        largest_difference=apart,
    )
    codes = [notes.values[part]["code"] for part in ("prepare", "whole", "resumed")]
    complete = len(expected) == len(found) == sum(PHASES)
    close = apart <= (TOLERANCE if setting.device.type == "cuda" else 0.0)
    notes.add(ok=codes == [0, 0, 0] and notes.values["killed"]["killed"] and complete and close)


def launch(options: list[str], run: str) -> list[str]:
    """The command line, with the launcher that a shell finds or else its module."""
    found = shutil.which("deepspeed")
    launcher = [sys.executable, found] if found else [sys.executable, "-m", "deepspeed.launcher.runner"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [*launcher, "--num_gpus", "1", "--master_port", port, "launchers/pretrain.py", *options, f"run.name={run}"]


def called(command: list[str]) -> dict[str, Any]:
    return Command(command).until_end()


class Command:
    """A command in a session of its own, with how long it took and the end of what it said."""

    def __init__(self, command: list[str]) -> None:
        self.began = time.monotonic()
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self.said, stderr=subprocess.STDOUT, start_new_session=True
        )

    def until_end(self) -> dict[str, Any]:
        try:
            code: int | None = self.process.wait(timeout=WAIT)
        except subprocess.TimeoutExpired:
            code = None
        return self._ended(code=code)

    def kill_at(self, metrics: Path) -> dict[str, Any]:
        """SIGKILL to launcher and ranks once a step is reported."""
        reached = False
        while time.monotonic() - self.began < WAIT and self.process.poll() is None and not reached:
            time.sleep(0.02)
            reached = last_step(metrics) >= KILL_AT
        return self._ended(killed=reached and self.process.poll() is None)

    def _ended(self, **found: Any) -> dict[str, Any]:
        seconds = time.monotonic() - self.began
        kill_tree(self.process.pid)
        self.process.wait()
        self.said.seek(0)
        said = [line[:400] for line in self.said.read().splitlines()[-LINES:]]
        print("\n".join(said), flush=True)
        return found | {"seconds": seconds, "said": said}


def kill_tree(pid: int) -> None:
    """SIGKILL to a process this program started and to all it has started: ranks have sessions of their own."""
    import psutil

    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes[1:], timeout=10)


def read_steps(metrics: Path) -> dict[int, float]:
    """Step -> loss; of a step made twice, the second time's.  The last line may be half written."""
    found = {}
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "loss" in values and "step" in values:
            found[int(values["step"])] = float(values["loss"])
    return found


def last_step(metrics: Path) -> int:
    return max(read_steps(metrics), default=0)


def losses(folder: Path, run: str) -> dict[int, float]:
    return read_steps(folder / "runs" / run / "metrics.jsonl")
