"""What the commands share: a parser, shipped configurations by name, and how a command was typed.

Only the standard library and the version: `--help` answers at once.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from training.version import __version__

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE.parent / "configs"


def command_names() -> list[str]:
    """Every command, in alphabetical order."""
    return sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))


def shipped_configs(folder: str = "") -> list[str]:
    """Names of the shipped YAML files of `configs/FOLDER`: what `--config` or `--cluster` takes besides a path."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def config_file(text: str) -> Path:
    """The file that `--config` names: a path, or a shipped configuration such as `quickstart` or `ablation/figure5`."""
    return _find(text, "")


def cluster_file(text: str) -> Path:
    """The file that `--cluster` names: a path, or a shipped cluster profile such as `local`."""
    return _find(text, "cluster")


def _find(text: str, folder: str) -> Path:
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path  # a missing file is reported, with the other problems, by the one who reads it
    shipped = CONFIGS / folder / f"{text}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(shipped_configs(folder))
    raise argparse.ArgumentTypeError(f"{text!r} is neither a file nor a shipped configuration; those are {names}")


def started_as_memtrain() -> bool:
    """Whether the `memtrain` program runs this process, not a file of a checkout."""
    return Path(sys.argv[0]).stem == "memtrain"


def typed(name: str, argv: Sequence[str] | None = None) -> str:
    """The command line that runs command `name` again with the same arguments."""
    program = f"memtrain {name}" if started_as_memtrain() else f"python launchers/{name}.py"
    return shlex.join([*program.split(), *(sys.argv[1:] if argv is None else argv)])


def command_parser(name: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of command `name`: texts keep their line breaks, and show commands as the reader must type them."""
    parser = argparse.ArgumentParser(
        prog=typed(name, ()),
        description=_as_typed(description),
        epilog=_as_typed(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"memtrain {__version__}")
    return parser


def _as_typed(text: str | None) -> str | None:
    """`text` with the commands of a checkout written as those of an installed package, where that is what runs."""
    if text is None or not started_as_memtrain():
        return text
    text = re.sub(r"((?:deepspeed|torchrun) [^\n]*?)launchers/(\w+)\.py", r"\1--module launchers.\2", text)
    text = re.sub(r"(?:python )?launchers/(\w+)\.py", r"memtrain \1", text)
    return re.sub(r"configs/(?:cluster/)?([\w./]+)\.yaml", r"\1", text)
