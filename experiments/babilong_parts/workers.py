"""Processes that make material while models train."""

import os
import threading
from multiprocessing import parent_process


def begin(niceness: int) -> None:
    """Call first in a worker: what trains must not wait for a core, and a killed parent must leave no worker behind."""
    os.nice(niceness)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
