"""One CUDA device: is the model right on it, how long does a rank take to start, how fast does it train.

    benchmarks/gpu.sh                     (or: python benchmarks/gpu.py)
    python benchmarks/gpu.py --small      every part with tiny sizes, on a CPU too

Each part is a process of its own with a time limit, and writes what it finds as soon as it has it: a part that fails or
is slow costs no other its results.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# in the order of running; seconds each may take
LIMITS = {
    "start": 45,
    "run": 150,
    "llama": 90,
    "lm2": 120,
    "delta": 110,
    "attention": 50,
    "engine": 120,
    "llama-paths": 100,
    "lm2-paths": 140,
    "delta-paths": 140,
    "parity": 70,
    "causality": 70,
    "resume": 80,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the program; also on a CPU")
    parser.add_argument("--parts", default=",".join(LIMITS), help=f"some of {','.join(LIMITS)}")
    parser.add_argument("--budget", type=float, default=510, help="seconds for all parts together")
    parser.add_argument("--samples", type=int, help="samples of a micro-batch, where the most that fit are not wanted")
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"), help="in the backward")
    default = os.environ.get("OUT") or str(ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of gpu.json, .jsonl, .png and .log")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)  # this process is one part
    options = parser.parse_args()
    options.names = [name for name in options.parts.split(",") if name]
    if unknown := sorted(set(options.names) - LIMITS.keys()):
        parser.error(f"--parts: no part is called {', '.join(unknown)}; choose from {', '.join(LIMITS)}")
    return options


def main() -> int:
    options = arguments()
    if options.part:
        return run_part(options)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    deadline = began + options.budget
    (options.out / "gpu.jsonl").unlink(missing_ok=True)
    report = about(options)
    with (options.out / "gpu.log").open("w", encoding="utf-8") as log:
        for name in options.names:
            allowed = min(LIMITS[name], deadline - time.monotonic())
            found = supervised(name, options, allowed, log)
            report["parts"][name] = found
            took = f"{found['seconds']:.1f} s; {time.monotonic() - began:.0f} s of {options.budget:.0f}"
            print(f"{name}: {found['status']}, {took}", flush=True)
            write(options.out / "gpu.json", report)
    conclude(report, options)
    return int(any(part["status"] in ("failed", "wrong") for part in report["parts"].values()))


def about(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    versions = {}
    for package in ("torch", "deepspeed", "megatron-core", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {platform.machine()}",
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "small": options.small,
        "parts": {},
    }


def supervised(name: str, options: argparse.Namespace, allowed: float, log: Any) -> dict[str, Any]:
    """Run a part in a process of its own, and end it with all it started when its time is over."""
    found: dict[str, Any] = {"status": "no time", "seconds": 0.0, "results": {}}
    if allowed < 5:
        return found
    notes = options.out / f".{name}.json"
    notes.unlink(missing_ok=True)
    own = ["--part", name, "--out", str(options.out)]
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *own]
    log.write(f"\n=== {name}\n")
    log.flush()
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code = process.wait(timeout=allowed)
        found["status"] = "done" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        found["status"] = "timed out"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found["seconds"] = time.monotonic() - started
    if notes.exists():
        found["results"] = json.loads(notes.read_text(encoding="utf-8"))
        notes.unlink()
        for key in ("error", "skipped"):
            if key in found["results"]:
                found["error"] = found["results"].pop(key)
                found["status"] = "skipped" if key == "skipped" else "failed"
    if found["status"] == "done" and found["results"].get("ok") is False:
        found["status"] = "wrong"
    return found


def conclude(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Claims, table and picture of what there is."""
    from benchmarks.gpu_parts.report import claims, picture, rows, table

    print(f"{report['device']}, {report['versions']}, {report['date']}")
    print(table(report["parts"]))
    report["claims"] = claims(report["parts"], counts=report["cuda"] is not None and not options.small)
    write(options.out / "gpu.json", report)
    if rows(report["parts"]):
        sizes = ", tiny sizes" if options.small else ""
        picture(report["parts"], f"{report['device']}, bf16{sizes}, {report['date']}", options.out / "gpu.png")


def write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_part(options: argparse.Namespace) -> int:
    """This process is one part: do it, and leave its notes."""
    import torch

    from benchmarks.gpu_parts.common import Notes, Setting, Skipped

    setting = Setting(options.small, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else "CPU"
    notes = Notes(options.out / f".{options.part}.json", options.out / "gpu.jsonl", part=options.part, device=device)
    if options.small or options.part in ("parity", "causality"):
        torch.set_num_threads(1)  # for tiny products, threads that wait for each other take longer than one
    try:
        if setting.device.type == "cuda":
            torch.cuda.set_device(setting.device)
        elif not options.small:
            raise Skipped("no CUDA device; --small tries the program on a CPU")
        function_of(options)(setting, notes)
    except Skipped as reason:
        notes.add(skipped=str(reason))
    except Exception as error:
        traceback.print_exc()
        notes.add(error=f"{type(error).__name__}: {str(error)[:500]}")
        return 1
    return 0


def function_of(options: argparse.Namespace) -> Callable[[Any, Any], None]:
    """A part's function; imported only here, so that one that cannot be imported costs no other."""
    from benchmarks.gpu_parts import checks

    match options.part:
        case "parity":
            return checks.parity
        case "causality":
            return checks.causality
        case "start":
            from benchmarks.gpu_parts.engine_checks import start

            return start
        case "resume":
            from benchmarks.gpu_parts.engine_checks import resume

            return resume
        case "run":
            from benchmarks.gpu_parts.real_run import real_run

            return real_run
        case "attention":
            from benchmarks.gpu_parts.attention import attention

            return attention
    from benchmarks.gpu_parts.training import train

    return lambda setting, notes: train(setting, notes, options.part, options.samples, options.recompute)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this folder: `benchmarks`, `model`, `training` and `tests` are found from it
    sys.exit(main())
