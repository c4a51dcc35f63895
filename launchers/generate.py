"""Generate text from a checkpoint; prompt and output may have any length."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep import Tokenizer

CONTEXT = 16  # previous tokens that are decoded together with a new one, because a token alone may lose its space

EXAMPLES = """\
  python launchers/generate.py --checkpoint runs/quickstart --prompt "def main():"
  cat notes.txt | python launchers/generate.py --checkpoint runs/quickstart --prompt-file -
  python launchers/generate.py --checkpoint runs/memory3_small \\
      --references data/memory3_small/references --bank banks/small --prompt "def main():"
      a model with explicit memory retrieves references every 64 tokens and reads their memories
"""
MORE = """\
Several prompts are continued as one batch.  Without --bank the model writes the memories of retrieved references when
they are needed; launchers/write_bank.py writes them beforehand.

exit codes: 0 done; 2 bad input.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, number, path, place, seed

    parser = command_parser("generate", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("--checkpoint", type=path, metavar="PATH", help="run folder or checkpoint folder")
    add("--config", type=config_file, metavar="FILE", help="instead: the run that this configuration trains")
    add("overrides", nargs="*", metavar="section.key=value", help="with --config: as for pretrain.py")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue (default: none); several are a batch"
    )
    prompt.add_argument("--prompt-file", type=place, metavar="FILE", help="file to continue; - reads standard input")
    add("--max-tokens", type=number, default=200, metavar="N", help="tokens to generate (default 200)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 is greedy (default 0.8)")
    add("--top-k", type=number, default=None, metavar="K", help="draw from the K likeliest tokens")
    add("--top-p", type=float, default=None, metavar="P", help="draw from the likeliest tokens of total probability P")
    add("--seed", type=seed, default=0, metavar="N", help="same seed, same text (default 0)")
    add("--references", type=path, metavar="FOLDER", help="references to retrieve from")
    add("--bank", type=path, metavar="FOLDER", help="memories of the references, by launchers/write_bank.py")
    add("--cold", action="store_true", help=more("write memories that the bank lacks, and store them there"))
    add("--data", type=path, default=None, metavar="FOLDER", help=more("tokenizer's folder, if it moved"))
    arguments = parser.parse_intermixed_args(argv)
    arguments.prompt = arguments.prompt or [""]
    if arguments.bank is not None and arguments.references is None:
        parser.error("--bank needs --references, the folder of references it was written from")
    if arguments.cold and arguments.bank is None:
        parser.error("--cold needs --bank, in which the written memories are stored")
    if (arguments.checkpoint is None) == (arguments.config is None):
        parser.error("give either --checkpoint PATH or --config FILE")
    if arguments.overrides and arguments.config is None:
        parser.error(f"{arguments.overrides[0]}: overrides go with --config; a checkpoint has its own configuration")
    if arguments.max_tokens < 0:
        parser.error(f"--max-tokens: {arguments.max_tokens} must not be negative")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code
    from training.errors import TrainingError

    several = arguments.references is not None or len(arguments.prompt) > 1
    return exit_code(lambda: (batch if several else stream)(arguments), bad_input=(TrainingError,))


def stream(arguments: argparse.Namespace) -> None:
    """Continue one prompt, and print each token as soon as it is generated."""
    import torch

    from model.generation import Sampling, generate
    from training.checkpoint.trained_model import load_model

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    prompt = read_prompt(arguments.prompt[0], arguments.prompt_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_model(run_folder(arguments), device)
    tokenizer = trained.tokenizer(arguments.data)
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    started = time.perf_counter()
    produced: list[int] = []
    print(prompt, end="", flush=True)
    tokens = generate(
        trained.net,
        torch.tensor([ids], device=device),
        arguments.max_tokens,
        sampling,
        arguments.seed,
        stop_id=tokenizer.eos_id,
    )
    special = (tokenizer.bos_id, tokenizer.eos_id)
    context = ids[-CONTEXT:]
    held: list[int] = []
    for token in tokens:
        produced.append(int(token))
        if int(token) not in special:
            context, held = show(tokenizer, context, [*held, int(token)])
    print(added_text(tokenizer, context, held))
    seconds = time.perf_counter() - started
    note = f"{len(ids):,} tokens read, {len(produced):,} written in {seconds:.1f} s, from {trained.path}"
    print(note, file=sys.stderr)


def batch(arguments: argparse.Namespace) -> None:
    """Continue several prompts as one batch, with references if given, and print the results at the end."""
    import torch

    from evaluation.memories import open_source
    from model.explicit.generation import generate_with_memory
    from model.generation import Sampling
    from training.checkpoint.trained_model import load_model

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    texts = [read_prompt(text, arguments.prompt_file) for text in arguments.prompt]
    trained = load_model(run_folder(arguments), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = trained.tokenizer(arguments.data)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    source = None
    if arguments.references is not None:
        folder, bank = arguments.references, arguments.bank
        source = open_source(trained.net, folder, bank, tokenizer.fingerprint, cold=arguments.cold)
    written: list[list[int]] = [[] for _ in prompts]
    special = (tokenizer.bos_id, tokenizer.eos_id)
    started = time.perf_counter()
    tokens = generate_with_memory(
        trained.net, prompts, source, arguments.max_tokens, sampling, arguments.seed, tokenizer.eos_id
    )
    for row, token in tokens:
        if token not in special:
            written[row].append(token)
    seconds = time.perf_counter() - started
    for number, (text, prompt, found) in enumerate(zip(texts, prompts, written, strict=True), start=1):
        head = f"── {number} ──\n" if len(prompts) > 1 else ""
        print(f"{head}{text}{added_text(tokenizer, prompt, found)}")
    if source is not None:
        source.close()
    read, made = sum(map(len, prompts)), sum(map(len, written))
    print(f"{read:,} tokens read, {made:,} written in {seconds:.1f} s, from {trained.path}", file=sys.stderr)


def run_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder in which the checkpoint is looked for."""
    from training.config import load_config

    if arguments.checkpoint is not None:
        return Path(arguments.checkpoint)
    return load_config(arguments.config, arguments.overrides).run.folder


def added_text(tokenizer: "Tokenizer", context: list[int], held: list[int]) -> str:
    """Return the text that the tokens `held` add after `context`; decoded alone they could lose a leading space."""
    return tokenizer.decode(context + held)[len(tokenizer.decode(context)) :]


def show(tokenizer: "Tokenizer", context: list[int], held: list[int]) -> tuple[list[int], list[int]]:
    """Print the tokens `held`, unless they end inside a character; return the new context and the tokens still held."""
    text = added_text(tokenizer, context, held)
    if text.endswith("\ufffd") and len(held) < 8:
        return context, held
    print(text, end="", flush=True)
    return (context + held)[-CONTEXT:], []


def read_prompt(text: str, file: str | None) -> str:
    """Return `text`, or the content of `file` ("-": standard input).  Raises `ConfigError` when it is not UTF-8."""
    from training.errors import ConfigError

    try:
        if file is not None:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        text.encode()  # an argument or a pipe may contain bytes that are not UTF-8
    except (OSError, UnicodeError) as error:
        what = "--prompt: the text" if file is None else f"--prompt-file: {file}"
        raise ConfigError(f"{what} cannot be read as UTF-8 text: {error}") from None
    return text


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
