"""Show what a model's memory does with a prompt: what is read, and how much it helps."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

LONGEST = 4096  # most tokens of a prompt that are analysed, because all reads are kept in memory

EXAMPLES = """\
  python launchers/interpret.py --checkpoint runs/quickstart --prompt-file launchers/generate.py
      writes index.html with its pictures and interpretation.json into RUN/interpretation
  python launchers/interpret.py --checkpoint runs/quickstart --prompt-file notes.txt \\
      --max-tokens 16 --output seen
      let the model generate 16 more tokens; write into another folder
"""
MORE = """\
launchers/report.py finds what was written into RUN/interpretation.

exit codes: 0 written; 2 bad input, nothing was written.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path, place

    parser = command_parser("interpret", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("--checkpoint", type=path, required=True, metavar="PATH", help="run folder or checkpoint folder")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to read; it must be longer than a segment")
    prompt.add_argument(
        "--prompt-file", type=place, metavar="FILE", help=f"its first {LONGEST:,} tokens; - reads standard input"
    )
    add("--max-tokens", type=number, default=0, metavar="N",
        help="generate N more tokens greedily (default 0)")  # fmt: skip
    add("--output", type=path, metavar="FOLDER", help="default: RUN/interpretation")
    add("--tokens", type=number, default=24, metavar="N", help=more("rows of a heatmap (default 24)"))
    add("--slots", type=number, default=20, metavar="N", help=more("columns of a heatmap (default 20)"))
    add("--ablated", type=number, default=4, metavar="N",
        help=more("slots per block to ablate one at a time (default 4)"))  # fmt: skip
    add("--data", type=path, default=None, metavar="FOLDER", help=more("tokenizer's folder, if it moved"))
    arguments = parser.parse_args(argv)
    for name, least in (("max_tokens", 0), ("tokens", 1), ("slots", 1), ("ablated", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be at least {least}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code, typed
    from training.errors import TrainingError

    return exit_code(lambda: interpret(arguments, typed("interpret", argv)), bad_input=(TrainingError,))


def interpret(arguments: argparse.Namespace, command: str) -> None:
    """Analyse the prompt and write JSON, page and pictures; command: the command line that the page names."""
    import torch

    from evaluation.interpret import analyse, save_analysis
    from evaluation.interpret.analysis import Size
    from evaluation.interpret.page import write_page
    from launchers.generate import read_prompt
    from model.generation import Sampling, generate
    from training.checkpoint.trained_model import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_model(arguments.checkpoint, device)
    tokenizer = trained.tokenizer(arguments.data)
    ids = [tokenizer.bos_id, *tokenizer.encode(read_prompt(arguments.prompt, arguments.prompt_file))]
    if len(ids) > LONGEST:
        print(f"warning: only the first {LONGEST:,} of the prompt's {len(ids):,} tokens are read", file=sys.stderr)
        ids = ids[:LONGEST]
    stream = torch.tensor([ids], device=device)
    going_on = generate(trained.net, stream, arguments.max_tokens, Sampling(temperature=0))
    written = [int(token) for token in going_on] if arguments.max_tokens else []
    analysis = analyse(
        trained.net,
        ids + written,
        tokenizer.piece,
        prompt_tokens=len(ids),
        run=trained.config.run.name,
        checkpoint=str(trained.path),
        command=command,
        size=Size(tokens=arguments.tokens, slots=arguments.slots, ablated=arguments.ablated),
    )
    folder = arguments.output or trained.path.parent.parent / "interpretation"
    save_analysis(analysis, folder)
    write_page(analysis, folder)
    print(f"{folder}/index.html, {folder}/interpretation.json")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
