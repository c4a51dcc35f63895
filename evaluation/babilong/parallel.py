"""Share work among processes, and return results in the order of the work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import starmap
from typing import Any, TypeVar

from data_prep.preparation.tokenize import Pool

T = TypeVar("T")
_AHEAD = 3  # results ahead for each process: enough that none waits, few enough for the memory


def in_order(function: Callable[..., T], work: Iterable[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """Yield function(*arguments) for each arguments in `work`, in order; with `workers` 1 in this process.

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
