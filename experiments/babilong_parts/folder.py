"""The work folder of experiments/babilong.py: the settings it was begun with, its log, and what is measured already."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.files import write_text

Log = Callable[[dict[str, Any]], None]


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder with its settings, or compare them with those it was begun with.

    Raises:
        DataError: a setting differs, because rows and learning rates would no longer be those of the models in it.
    """
    path = folder / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name, value) != value:
                raise DataError(
                    f"--{name}: is {value}, but {folder} was begun with {before[name]}; use that, or another --work"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def open_log(path: Path) -> Log:
    """Lines to a JSONL file and to the screen, from any thread."""
    lock = threading.Lock()

    def log(line: dict[str, Any]) -> None:
        short = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
        with lock, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(short) + "\n")
            print(json.dumps(short), flush=True)

    return log


def measured(path: Path) -> set[tuple[str, str, int]]:
    """(entry, length, samples a task) of every result in the log; empty where there is no log."""
    if not path.is_file():
        return set()
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["entry"], line["length"], line.get("samples", 0)) for line in lines if "length" in line}
