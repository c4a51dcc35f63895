"""Begin with a Hugging Face Llama: print its `model:` section, or prove its logits."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/import_hf.py ../Llama-3.2-1B
      print the model section of a configuration
  python launchers/import_hf.py ../Llama-3.2-1B --memory lm2 --segment-length 1024 > model.yaml
      the same with a memory added
  python launchers/import_hf.py ../Llama-3.2-1B --prove
      compare the logits with those of Transformers
"""
MORE = """\
FOLDER has config.json and *.safetensors, one file or several with an index, as `hf download` writes them.  Nothing in
it is executed.  Set  init_from: hf:FOLDER  in the run's first phase; the run checks the folder again.
A folder that launchers/export.py wrote keeps its memory.

exit codes: 0 done; 1 the logits differ; 2 bad input.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path
    from model.memory.registry import choices  # without torch: --help answers at once

    parser = command_parser("import_hf", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("folder", type=path, metavar="FOLDER", help="the Llama: config.json, *.safetensors")
    add("--segment-length", type=number, default=None, metavar="T", help="tokens of a segment (default: at most 2048)")
    add("--memory", choices=choices(), default=None,
        help="memory to add (default: that of FOLDER), with its default sizes (docs/memory.md)"
    )  # fmt: skip
    add("--prove", action="store_true",
        help="compare with Transformers' LlamaForCausalLM in fp32 (needs both in memory)")  # fmt: skip
    add("--length", type=number, default=256, metavar="N", help=more("tokens of the proof (default 256)"))
    add("--tolerance", type=float, default=1e-4, metavar="X", help=more("largest logit difference (default 1e-4)"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: act(arguments), bad_input=(OSError,))


def act(arguments: argparse.Namespace) -> None:
    """Print the model section, or compare the logits.  Raises one of `BAD_INPUT`, or `TrainingError`."""
    from pydantic import ValidationError

    from training.errors import ConfigError
    from training.huggingface.import_config import model_section, prove, section_text
    from training.huggingface.logits import check_difference

    folder = arguments.folder
    if not arguments.prove:
        try:
            section = model_section(folder, arguments.segment_length, arguments.memory)
        except ValidationError as error:
            lines = (f"model.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError("\n".join(lines)) from None
        print(section_text(section, folder), end="")
        return
    difference = prove(folder, arguments.length)
    print(
        f"largest logit difference to Transformers' Llama {difference:.3g} over {arguments.length} tokens, "
        f"tolerance {arguments.tolerance:.3g}"
    )
    check_difference(difference, arguments.tolerance, str(folder))


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
