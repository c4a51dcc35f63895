"""Run a function on several gloo ranks, started from a forkserver that has the heavy imports already."""

import contextlib
import multiprocessing as mp
import os
import pickle
import queue
import secrets
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

PRELOADED = ["tests.distributed.preload"]
WORKERS = 16  # more than a test run has


def _context() -> ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def free_port() -> int:
    """A port on which nothing listens, and that no other worker of this test run chooses.

    Not one of those that the kernel gives to connections (from 32768): between this answer and the listening another
    process could be given it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = secrets.choice(range(20_000 + worker % WORKERS, 32_000, WORKERS))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port


def _rank_main(
    function: Callable[..., Any], rank: int, world: int, port: int, arguments: tuple[Any, ...], results: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls collectives by names that torch is renaming
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        # as bytes: tensors in a queue would be files that vanish with this process
        results.put((rank, True, pickle.dumps(function(*arguments))))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
    finally:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 120) -> list[Any]:
    """`function(*arguments)` on `world` ranks; what each returned, by rank.

    A rank that raises fails the test with its traceback; ranks that hang are killed after `timeout` seconds.
    """
    context = _context()
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_rank_main, args=(function, rank, world, port, arguments, results), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    outcomes: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    try:
        while len(outcomes) < world:
            try:
                rank, succeeded, value = results.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                missing = sorted(set(range(world)) - outcomes.keys())
                raise TimeoutError(f"ranks {missing} gave no answer within {timeout} s") from None
            if not succeeded:
                raise AssertionError(f"rank {rank} of {world} raised:\n{value}")
            outcomes[rank] = pickle.loads(value)
        for process in processes:
            process.join(timeout=10)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [outcomes[rank] for rank in range(world)]


def scratch_folder() -> str:
    """A folder that ranks can share."""
    return tempfile.mkdtemp(prefix="memtrain-test-")
