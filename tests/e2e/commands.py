"""Real commands in processes of their own: what they answered, what they wrote, and nothing of them left behind."""

import contextlib
import hashlib
import json
import multiprocessing as mp
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.distributed.spawn import PRELOADED, free_port

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT / "launchers" / "pretrain.py"
GENERATE = ROOT / "launchers" / "generate.py"
DEEPSPEED = Path(sys.executable).parent / "deepspeed"

WARM_SECONDS = 180  # a command's seconds, times what a busy machine is slower

# What a launcher or a user's shell may have set, and what would send a test elsewhere.
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "MLFLOW_TRACKING_URI")
FOREIGN_FAMILIES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """One thread, the repository importable, no GPU and no other launcher's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in FOREIGN and not k.startswith(FOREIGN_FAMILIES)}
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return kept | settings | dict(extra or {})


def plain(script: Path, *arguments: str) -> list[str]:
    """The command line of one process."""
    return [sys.executable, str(script), *arguments]


def deepspeed(ranks: int, *arguments: str) -> list[str]:
    """The command line of `ranks` processes of the main job."""
    launcher = [sys.executable, str(DEEPSPEED), "-q", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [*launcher, str(PRETRAIN), *arguments]


@contextlib.contextmanager
def started(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`command` running; afterwards it and all its descendants are gone."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.communicate()


def run(command: list[str], cwd: Path, timeout: float = 240) -> Done:
    """`command`, to its end."""
    with started(command, cwd) as process:
        out, err = process.communicate(timeout=timeout)
        return Done(process.returncode, out, err)


def run_warm(script: Path, *arguments: str, cwd: Path, extra: Mapping[str, str] | None = None) -> Done:
    """`python script arguments` in a fork of a process that has the heavy imports already: a second, not ten."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_scratch()) for _ in range(2)]
        paths = [file.name for file in files]
        process = context.Process(target=_become, args=(script, arguments, cwd, environment(extra), paths))
        process.start()
        process.join(timeout=WARM_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{script.name} {' '.join(arguments)} still runs after {WARM_SECONDS} s")
        out, err = (Path(path).read_text(encoding="utf-8") for path in paths)
        return Done(process.exitcode, out, err)


def open_scratch() -> Any:
    import tempfile

    return tempfile.NamedTemporaryFile(prefix="memtrain-test-")


def _become(script: Path, arguments: tuple[str, ...], cwd: Path, env: dict[str, str], files: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [place for place in env["PYTHONPATH"].split(os.pathsep) if place not in sys.path]
    for target, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), target)
    import torch

    torch.set_num_threads(1)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")  # its sys.exit becomes this process's exit code


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask again and again until `condition` holds; an error names `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every path below `folder`: time of its last change and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (path.stat().st_mtime_ns, digest)
    return found


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; every one must be JSON."""
    text = (run_folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def steps_of(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run_folder) if "loss" in line]


def losses(run_folder: Path) -> dict[int, float]:
    """Loss by step; a step that is there twice is an error."""
    lines = steps_of(run_folder)
    found = {line["step"]: line["loss"] for line in lines}
    assert len(found) == len(lines), [line["step"] for line in lines]
    return found


def valid_losses(run_folder: Path) -> dict[int, float]:
    return {line["step"]: line["valid_loss"] for line in metrics(run_folder) if "valid_loss" in line}


def reproducible(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    clock = ("tokens_per_second", "mfu", "data_wait", "trained_seconds", "goodput")
    return [{key: value for key, value in line.items() if key not in clock} for line in metrics(run_folder)]
