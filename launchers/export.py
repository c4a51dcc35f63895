"""Write a checkpoint as a folder for Transformers, its logits proven equal."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/export.py runs/quickstart exported
      the latest checkpoint; the folder appears once its logits are those of the checkpoint
  python launchers/export.py runs/quickstart/checkpoints/step-00000400 exported --dtype bfloat16
  python launchers/export.py runs/quickstart llama --form llama
      the backbone alone, without its memory
"""
MORE = """\
PATH is a run's folder (its latest checkpoint) or a checkpoint folder; it may be an address that fsspec knows.

A model without a memory becomes a plain LlamaForCausalLM.  One with a memory becomes a folder with its own code:
  AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True)
and generate carries the memory in the cache.  Either comes back by init_from: hf:OUT.  docs/huggingface.md says more.

exit codes: 0 done; 1 the logits differ from the checkpoint's, nothing is left; 2 bad input, nothing was written.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, path, place

    parser = command_parser("export", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("source", type=place, metavar="PATH", help="run or checkpoint")
    add("target", type=path, metavar="OUT", help="folder to write; must not be there yet")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the weights (default float32)")  # fmt: skip
    add("--form", choices=("llama", "memtrain"), default=None,
        help="llama: the backbone as a plain Llama, without memory; memtrain: with this project's code, so that "
        "attention stays within segments (default: memtrain when there is a memory)")  # fmt: skip
    add("--data", type=path, default=None, metavar="FOLDER", help="tokenizer's folder, if it moved")
    add("--register", default=None, metavar="NAME", help="a new version of NAME in MLflow's registry")
    add("--tolerance", type=float, default=1e-4, metavar="X", help=more("largest logit difference (default 1e-4)"))
    add("--shard-size", default="5GB", metavar="SIZE", help=more("of a safetensors file (default 5GB)"))
    add("--no-tokenizer", action="store_true", help=more("leave the tokenizer out"))
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"[1-9]\d*([KMGT]B)?", arguments.shard_size):
        parser.error(f"--shard-size: {arguments.shard_size!r} is not a size; write it like 500MB or 5GB")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: act(arguments), bad_input=(OSError,))


def act(arguments: argparse.Namespace) -> None:
    """Export the checkpoint and print the result.  Raises one of `BAD_INPUT`, or `TrainingError`."""
    from training.checkpoint.remote import local_copy
    from training.checkpoint.trained_model import find_checkpoint, load_model
    from training.huggingface.export import export
    from training.tracking.registry import register_model, registry_of

    trained = load_model(find_checkpoint(local_copy(arguments.source, "PATH"), "PATH"))
    tokenizer = None if arguments.no_tokenizer else trained.tokenizer(arguments.data)
    if arguments.register:
        registry_of(trained.path)  # refuses before anything is written
    done = export(
        trained,
        arguments.target,
        tokenizer,
        arguments.form,
        arguments.dtype,
        arguments.tolerance,
        arguments.shard_size,
    )
    print(f"{trained.path}: {done.parameters:,} parameters exported to {arguments.target} ({done.form})")
    print(f"largest logit difference {done.difference:.3g}, tolerance {arguments.tolerance:.3g}")
    if done.rounding:
        print(f"rounding to {arguments.dtype} changes a logit by {done.rounding:.3g} at most")
    if done.left_out:
        print(f"{done.left_out:,} parameters of the memory are left out, because a Llama has no memory")
    if done.exact_tokens:
        print(f"its logits equal the checkpoint's for texts of up to {done.exact_tokens:,} tokens")
    if name := arguments.register:
        print(f"registered: models:/{name}/{register_model(name, arguments.target, trained.path)}")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
