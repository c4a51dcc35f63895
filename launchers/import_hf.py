"""Begin with a Hugging Face Llama: print the `model:` section for it, and prove that its logits stay the same.

python launchers/import_hf.py ../Llama-3.2-1B
python launchers/import_hf.py ../Llama-3.2-1B --memory lm2 --segment-length 1024 > model.yaml
python launchers/import_hf.py ../Llama-3.2-1B --prove
"""

import argparse
import sys
from pathlib import Path

EPILOG = """\
FOLDER holds config.json and *.safetensors, in one file or several with an index, as `hf download` leaves them.
Nothing in it is executed.  The run then says  init_from: hf:FOLDER  in its first phase, which checks everything again.
A folder that launchers/export.py wrote comes back with its memory.

exit codes: 0 done; 1 the logits are not the same; 2 bad input.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--segment-length", type=int, default=None, metavar="T", help="tokens of a segment (default: at most 2048)"
    )
    parser.add_argument(
        "--memory",
        choices=("none", "lm2", "lm2-depth", "delta", "rmt"),
        default="none",
        help="memory to add (default none); its sizes are as by default, docs/memory.md explains them",
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="compare with Transformers' LlamaForCausalLM in fp32 (needs both in memory)",
    )
    parser.add_argument("--length", type=int, default=256, metavar="N", help="tokens of the proof (default 256)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="X", help="largest logit difference (default 1e-4)"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # Imports after the arguments: --help answers at once.
    from pydantic import ValidationError

    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, TrainingError

    try:
        act(arguments)
    except ValidationError as error:
        print("\n".join(f"model.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except (*BAD_INPUT, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        print("Hugging Face Transformers is missing: pip install -e '.[hf]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def act(arguments: argparse.Namespace) -> None:
    from training.huggingface.import_config import model_section, prove, section_text
    from training.huggingface.logits import check_difference

    folder = arguments.folder
    if not arguments.prove:
        print(section_text(model_section(folder, arguments.segment_length, arguments.memory), folder), end="")
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
    sys.exit(main())
