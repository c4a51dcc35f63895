"""Checks each node, and compares all nodes, with one process on each node before ranks are started."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from data_prep.errors import one_line
from data_prep.files import write_text
from training.distributed.ranks import RankInfo
from training.distributed.topology import connect
from training.errors import ConfigError, TrainingError

GIB = 2**30
_PACKAGES = ("torch", "deepspeed", "megatron-core", "mlflow", "numpy", "pyarrow")
_IN_USE = 0.8  # a GPU with a smaller fraction of free memory is in use by another program


@dataclass(frozen=True)
class NodeRequirements:
    """The requirements on every node."""

    gpus: int
    memory_gib: float
    disk_gib: float
    folders: Sequence[Path]
    clock_skew: float  # largest difference between clocks, seconds
    all_reduce_mib: int
    timeout: float  # seconds


def check_node(wanted: NodeRequirements, results: Path) -> str:
    """Check this node alone and then with the others; return its result, also written to `results/NODE`. Collective.

    The result begins with `ok`, with `bad` when this node is at fault, or with `unclear` when nodes disagree or cannot
    reach each other.
    """
    node, started = os.environ.get("SLURMD_NODENAME", platform.node()), time.monotonic()
    problem = local_problem(wanted)
    if problem:  # written before meeting the others, which may not come
        write_text(results / node, f"bad {problem}\n")
    try:
        among = _meet(node, wanted)
    except (ConfigError, TrainingError, RuntimeError) as error:
        among = f"unclear cannot reach the other nodes: {one_line(error)}"
    verdict = f"bad {problem}" if problem else f"{among} ({time.monotonic() - started:.1f} s)"
    write_text(results / node, verdict + "\n")
    return f"{node}: {verdict}"


def local_problem(wanted: NodeRequirements) -> str:
    """Return which requirements this node does not meet; empty when it meets all."""
    found = [_gpu_problem(wanted.gpus)] if wanted.gpus else []
    available = psutil.virtual_memory().available / GIB
    if available < wanted.memory_gib:
        found.append(f"{available:.1f} GiB of memory available, {wanted.memory_gib:g} needed")
    found += [_disk_problem(folder, wanted.disk_gib) for folder in wanted.folders]
    return "; ".join(text for text in found if text)


def _gpu_problem(wanted: int) -> str:
    count = torch.cuda.device_count()
    if count < wanted:
        return f"{count} usable GPUs, {wanted} needed"
    for index in range(wanted):
        try:
            free, total = torch.cuda.mem_get_info(index)
            if free < _IN_USE * total:
                return f"GPU {index} has {free / GIB:.1f} of {total / GIB:.1f} GiB free: something else uses it"
            ones = torch.ones(1024, 1024, device=f"cuda:{index}", dtype=torch.bfloat16)
            if not bool(((ones @ ones) == 1024).all()):
                return f"GPU {index} computes a wrong product"
        except RuntimeError as error:
            return f"GPU {index}: {one_line(error)}"
    return ""


def _disk_problem(folder: Path, wanted_gib: float) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".node-check-") as file:
            file.write(os.urandom(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free / GIB
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    return f"{folder} has {free:.2f} GiB free, {wanted_gib:g} needed" if free < wanted_gib else ""


def _meet(node: str, wanted: NodeRequirements) -> str:
    """Compare clocks and versions of all nodes, and test an all-reduce over them; return the result. Collective."""
    info = RankInfo.discover()
    cuda = wanted.gpus > 0 and torch.cuda.is_available()
    connect(info, "cpu:gloo,cuda:nccl" if cuda else "gloo", wanted.timeout)
    try:
        dist.barrier()
        mine = {"node": node, "clock": time.time(), "versions": versions()}
        facts: list[dict[str, Any]] = [{}] * info.world_size
        dist.all_gather_object(facts, mine)
        count = wanted.all_reduce_mib * 2**20 // 4
        numbers = torch.full((count,), float(info.rank + 1), device="cuda:0" if cuda else "cpu")
        started = time.monotonic()
        dist.all_reduce(numbers)
        right = bool((numbers == info.world_size * (info.world_size + 1) / 2).all())
        seconds = time.monotonic() - started
        if not right:
            return "unclear an all-reduce over the nodes gives a wrong sum"
        told = judge(facts, wanted.clock_skew).get(node)
        return told or f"ok {info.world_size} nodes, all-reduce of {wanted.all_reduce_mib} MiB in {seconds:.2f} s"
    finally:
        dist.destroy_process_group()


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all nodes: packages, Python, and a hash of this project's code."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for folder in ("model", "training", "data_prep"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return found | {"python": platform.python_version(), "memtrain": digest.hexdigest()[:12]}


def judge(facts: Sequence[dict[str, Any]], clock_skew: float) -> dict[str, str]:
    """Return the result (`bad …` or `unclear …`) of each node that differs from the others, by node.

    A node that differs from a majority is bad; without a majority the nodes that differ are unclear.
    facts: node name, clock (seconds since the epoch) and versions of each node.
    """
    problems: dict[str, list[str]] = {}
    clear = True
    usual_clock = statistics.median(fact["clock"] for fact in facts)
    off = {fact["node"]: fact["clock"] - usual_clock for fact in facts}
    for node, seconds in off.items():
        if abs(seconds) * (2 if len(facts) == 2 else 1) > clock_skew:  # the median of two clocks is their mean
            problems.setdefault(node, []).append(f"its clock differs by {seconds:+.1f} s")
            clear = clear and len(facts) > 2
    for name in facts[0]["versions"]:
        counts = Counter(fact["versions"][name] for fact in facts).most_common()
        clear = clear and (len(counts) == 1 or counts[0][1] > len(facts) / 2)
        for fact in facts:
            found = fact["versions"][name]
            if found != counts[0][0]:
                problems.setdefault(fact["node"], []).append(f"has {name} {found}, others {counts[0][0]}")
    return {node: f"{'bad' if clear else 'unclear'} {'; '.join(texts)}" for node, texts in problems.items()}
