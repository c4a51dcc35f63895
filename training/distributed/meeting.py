"""The ranks of a start meet at one address; while ranks are missing, the waiting ones name them."""

import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from data_prep.errors import one_line
from training.distributed.ranks import RankInfo
from training.errors import ConfigError, RankConfigError, RankError, TrainingError
from training.monitoring.units import duration

FIRST_WORD = 5.0  # seconds until a waiting rank first says so; each following pause is twice as long
LONGEST_PAUSE = 300.0  # seconds
_GREETING = timedelta(seconds=120)  # timeout of rank 0's answer, once its port accepts connections
_ARRIVED, _COMPLETE = "arrived", "all have arrived"  # keys of the store
_SHOWN = 8  # number of missing ranks that a message names


def meet(info: RankInfo, seconds: float) -> dist.Store:
    """Wait until all ranks of this start have connected; return the store that they share. Collective.

    Rank 0 listens on `info.master_port`; under torchrun, torchrun's agent listens. While ranks are missing, rank 0 and
    the ranks that cannot reach it print on standard error which ranks they wait for, where and since when.

    Args:
        info: rank, world size and meeting point of this process.
        seconds: how long to wait for the others.

    Raises:
        ConfigError: the port is taken, or another process has this rank.
        TrainingError: not all ranks came within `seconds`; `RankError` on a rank that could not reach rank 0.
    """
    if info.world_size == 1:
        return dist.HashStore()  # a single process needs no port
    wait = Wait(info, seconds)
    store = _listen(info, seconds) if _listens(info) else _reach(info, wait)
    try:
        _arrive(store, info)
        _wait_for_all(store, info, wait)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise TrainingError(wait.failed(f"the other ranks until rank 0 ended ({_reason(error)})")) from error
    return dist.PrefixStore("group", store)


class Wait:
    """Measures how long a rank has waited for others, and prints messages about it at growing intervals."""

    def __init__(self, info: RankInfo, seconds: float) -> None:
        self.seconds, self._world = seconds, info.world_size
        self._who, self._where = f"rank {info.rank} on {platform.node()}", f"{info.master_addr}:{info.master_port}"
        self._began, self._since = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S")
        self._said, self._pause, self._polled = self._began, FIRST_WORD, 0.01

    @property
    def over(self) -> bool:
        """Whether the time to wait is over."""
        return time.monotonic() - self._began > self.seconds

    def pause(self, whom: Callable[[], str] | None) -> None:
        """Sleep for 0.01 s at first and up to 0.5 s later; when a message is due, print it.

        whom: returns which ranks are missing; None: this rank prints nothing.
        """
        if whom and time.monotonic() - self._said >= self._pause:
            self._said, self._pause = time.monotonic(), min(LONGEST_PAUSE, 2 * self._pause)
            left = self.seconds - (self._said - self._began)
            print(f"{self._waits(whom())}; gives up in {duration(max(0.0, left))}", file=sys.stderr, flush=True)
        time.sleep(self._polled)
        self._polled = min(0.5, 1.5 * self._polled)

    @property
    def _waited(self) -> str:
        return duration(time.monotonic() - self._began)

    def _waits(self, whom: str) -> str:
        return f"{self._who} waits at {self._where} for {whom}, since {self._since} ({self._waited})"

    def failed(self, whom: str) -> str:
        """Return the error message for a wait that ended because `whom` did not come."""
        return (
            f"{self._who} cannot meet the others at {self._where}; it waited for {whom}, since {self._since} "
            f"({self._waited}). Start all {self._world} ranks; rank 0 must run on that machine, whose firewall lets "
            "the port through. For one process alone unset RANK and WORLD_SIZE"
        )


def _listens(info: RankInfo) -> bool:
    """Return whether this rank must listen on the port; under torchrun the agent already does."""
    return info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _listen(info: RankInfo, seconds: float) -> dist.Store:
    try:
        return dist.TCPStore(
            info.master_addr,
            info.master_port,
            info.world_size,
            is_master=True,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError(
                f"MASTER_PORT: {info.master_port} is in use on {platform.node()}, perhaps by another run; choose "
                "another: deepspeed --master_port N, torchrun --master-port N, or MASTER_PORT=N for srun and mpirun"
            ) from None
        raise RankError(
            f"rank 0 on {platform.node()} cannot listen at {info.master_addr}:{info.master_port} ({_reason(error)}); "
            "MASTER_ADDR must be an address of this machine"
        ) from error


def _reach(info: RankInfo, wait: Wait) -> dist.Store:
    """Return the store on rank 0, trying again until rank 0 listens or the wait is over."""
    timeout = timedelta(seconds=wait.seconds)
    while True:
        try:
            socket.create_connection((info.master_addr, info.master_port), timeout=5).close()
            greeting = min(timeout, _GREETING)
            store = dist.TCPStore(
                info.master_addr, info.master_port, info.world_size, timeout=greeting, wait_for_workers=False
            )
            store.set_timeout(timeout)
            return store
        except (OSError, dist.DistNetworkError, dist.DistStoreError) as error:
            whom = f"rank 0, which does not answer ({_reason(error)})"
        if wait.over:
            raise RankError(wait.failed(whom))
        speaks = info.rank < _SHOWN or info.local_rank == 0  # the same line from hundreds of ranks would be unreadable
        wait.pause(partial(str, whom) if speaks else None)


def _arrive(store: dist.Store, info: RankInfo) -> None:
    """Register this rank in the store; raise `RankConfigError` when another process has registered as this rank."""
    if store.add(f"{_ARRIVED}/{info.rank}", 1) > 1:
        raise RankConfigError(
            f"RANK: {info.rank} on {platform.node()}, but another process at {info.master_addr}:{info.master_port} is "
            "this rank already; give each process its own rank, and each start its own MASTER_PORT"
        )
    store.add(_ARRIVED, 1)


def _wait_for_all(store: dist.Store, info: RankInfo, wait: Wait) -> None:
    """Return when all ranks have registered: rank 0 counts them and sets a key that the others wait for."""

    def missing() -> str:
        ranks = [rank for rank in range(info.world_size) if not store.check([f"{_ARRIVED}/{rank}"])]
        shown = ", ".join(map(str, ranks[:_SHOWN])) + (", …" if len(ranks) > _SHOWN else "")
        return f"{len(ranks)} of {info.world_size} ranks: {shown}"

    while True:
        if info.rank == 0 and store.add(_ARRIVED, 0) == info.world_size:
            store.set(_COMPLETE, "yes")
        if store.check([_COMPLETE]):
            return
        if wait.over:
            raise TrainingError(wait.failed(missing()))
        wait.pause(missing if info.rank == 0 else None)  # only rank 0 prints, so that each line appears once


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
