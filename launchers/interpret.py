"""What a model's memory does with a prompt: what its tokens read, what they got back, what each slot is worth.

python launchers/interpret.py --checkpoint runs/quickstart --prompt-file launchers/generate.py
python launchers/interpret.py --checkpoint runs/quickstart --prompt "…" --max-tokens 16 --output seen

Writes interpretation.json, a page (index.html) and its pictures into --output. Without --output that is
RUN/interpretation, where launchers/report.py finds it.

exit codes: 0 written; 2 bad input, nothing was written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

LONGEST = 4096  # tokens of a prompt that are looked at: reads are kept whole


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from launchers._cli import command_parser, number, path, place

    parser = command_parser("interpret", __doc__)
    parser.add_argument(
        "--checkpoint", type=path, required=True, metavar="PATH", help="run folder or checkpoint folder"
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to read; longer than a segment, or nothing is written")
    prompt.add_argument(
        "--prompt-file", type=place, metavar="FILE", help=f"its first {LONGEST:,} tokens; - reads standard input"
    )
    parser.add_argument(
        "--max-tokens",
        type=number,
        default=0,
        metavar="N",
        help="let the model go on for N tokens, greedily (default 0)",
    )
    parser.add_argument("--tokens", type=number, default=24, metavar="N", help="rows of a heatmap (default 24)")
    parser.add_argument("--slots", type=number, default=20, metavar="N", help="columns of a heatmap (default 20)")
    parser.add_argument(
        "--ablated", type=number, default=4, metavar="N", help="slots per block to ablate one at a time (default 4)"
    )
    parser.add_argument("--output", type=path, metavar="FOLDER", help="default: RUN/interpretation")
    parser.add_argument("--data", type=path, default=None, metavar="FOLDER", help="tokenizer's folder, if it moved")
    arguments = parser.parse_args(argv)
    for name, least in (("max_tokens", 0), ("tokens", 1), ("slots", 1), ("ablated", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be at least {least}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from launchers._cli import typed
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, TrainingError

    try:
        interpret(arguments, typed("interpret", argv))
    except (*BAD_INPUT, TrainingError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def interpret(arguments: argparse.Namespace, command: str) -> None:
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
        print(f"the first {LONGEST:,} of the prompt's {len(ids):,} tokens are read", file=sys.stderr)
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
