"""Work shared among processes, with results in the order of the work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import starmap
from typing import Any, TypeVar

from data_prep.preparation.tokenize import Pool

T = TypeVar("T")
_AHEAD = 3  # pieces of work a process: enough that none waits, few enough to hold in memory


def in_order(function: Callable[..., T], work: Iterable[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """function(*arguments) of each piece of work, in order; in this process when `workers` is 1.

    `work` may be endless. `function` and arguments must be picklable.
    """
    if workers == 1:
        yield from starmap(function, work)
        return
    with Pool(workers) as pool:
        waiting: deque[Future[T]] = deque()
        for arguments in work:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) == _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
