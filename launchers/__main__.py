"""The program `memtrain COMMAND …`, which runs `launchers/COMMAND.py`."""

import difflib
import importlib
import sys
import textwrap
from collections.abc import Sequence

from launchers._cli import PACKAGE, command_names, run, say_error, shipped_configs
from training.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit code, 2 when there is no such command."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"memtrain {__version__}")
        return 0
    command = name.replace("-", "_")
    if command not in command_names():
        close = difflib.get_close_matches(command, command_names(), n=1)
        way_out = f"did you mean {close[0]!r}?" if close else f"the commands are {', '.join(command_names())}"
        say_error(f"{name!r} is not a command; {way_out}")
        return 2
    module = importlib.import_module(f"launchers.{command}")
    code = run(module.main, rest)
    if command == "pretrain":
        module.leave(code)
    return code


def overview() -> str:
    """Return a text with a line for each command, and the configurations that `--config` knows by name."""
    lines = [f"memtrain {__version__}: pretrain language models that have a memory", ""]
    lines += ["usage: memtrain COMMAND …", ""]
    for name in command_names():
        first = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
        lines.append(f"  {name:<13} {first}")
    lines += ["", "configurations by name:"]
    lines += textwrap.wrap(", ".join(shipped_configs()), 98, initial_indent="  ", subsequent_indent="  ")
    lines += ["", "memtrain COMMAND --help explains a command"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
