"""Write a bank: the keys and values that a trained model keeps of every reference."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from data_prep import ReferenceStore
    from data_prep.bank import BankWriter, Quantiser
    from model.network import LanguageModel


EXAMPLES = """\
  python launchers/write_bank.py --checkpoint runs/memory3_small \\
      --references data/memory3_small/references --output banks/small
      the same command continues where it was killed
  torchrun --nproc_per_node 8 launchers/write_bank.py --checkpoint … --references … --output …
      (or deepspeed, or srun) each rank writes its share; each holds the whole model
"""
MORE = """\
  sbatch --array=0-63 --wrap 'python launchers/write_bank.py … --share $SLURM_ARRAY_TASK_ID/64'
      the same as an array: the last task to end writes index and manifest of all
  python launchers/write_bank.py … --quantise auto
      keys and values as codes of a trained FAISS quantiser, at least 11 times smaller (needs the extra quantise)

A bank can be read only by the weights that wrote it: write it again after more training.

exit codes: 0 this share is written; 2 bad input, nothing was written; anything else a failure.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path

    parser = command_parser("write_bank", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("--checkpoint", type=path, required=True, metavar="PATH", help="run or checkpoint folder")
    add("--references", type=path, required=True, metavar="FOLDER", help="prepared references")
    add("--output", type=path, required=True, metavar="FOLDER", help="the bank to make or continue")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
        help="of keys and values (default bfloat16)")  # fmt: skip
    add("--share", metavar="I/N", help="write only part I of N (from 0); default: this rank's part")
    add("--quantise", metavar="FACTORY",
        help="FAISS codec, such as OPQ20x80-Residual2x14-PQ8x10; auto chooses by head width")  # fmt: skip
    add("--quantise-sample", type=number, default=4096, metavar="N",
        help=more("references the codec is trained on (default 4096)"))  # fmt: skip
    add("--batch-size", type=number, default=32, metavar="N", help=more("references encoded at once (default 32)"))
    add("--local_rank", type=number, help=argparse.SUPPRESS)  # deepspeed passes it
    options = parser.parse_args(argv)
    try:
        options.part, options.parts = share_of(options.share)
    except ValueError:
        parser.error(f"--share: {options.share} must be I/N with 0 <= I < N, such as 0/4")
    if options.batch_size < 1 or options.quantise_sample < 1:
        parser.error("--batch-size and --quantise-sample must be at least 1")
    return options


def share_of(text: str | None) -> tuple[int, int]:
    """Return (part, parts): those of `text`, or rank and world size of torchrun, deepspeed or srun.

    Raises `ValueError` for a text of another form.
    """
    if text is not None:
        part, parts = map(int, text.split("/"))
    elif "WORLD_SIZE" in os.environ:
        part, parts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    elif "SLURM_STEP_ID" in os.environ:
        part, parts = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    else:
        part, parts = 0, 1
    if not 0 <= part < parts:
        raise ValueError
    return part, parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code
    from training.errors import TrainingError

    return exit_code(lambda: write_bank(options), bad_input=(TrainingError,))


def write_bank(options: argparse.Namespace) -> None:
    """Write this process's share of the bank.  Raises one of `BAD_INPUT`, or `TrainingError`."""
    import numpy as np
    from rich.console import Console

    from data_prep import ReferenceStore
    from data_prep.bank import BankWriter
    from data_prep.preparation.progress import CountProgress
    from evaluation.memories import as_stored, write_memories
    from model.explicit.references import memory_shape
    from model.fingerprint import weights_fingerprint
    from training.checkpoint.trained_model import load_model

    device = share_device(options.part)
    store = ReferenceStore(options.references)
    trained = load_model(options.checkpoint, device)
    check_model(trained.net, store, trained.tokenizer().fingerprint, options.checkpoint)
    console = Console(stderr=True, quiet=options.part > 0)
    with console.status("training the codec"):
        codec = make_codec(options, trained.net, store) if options.quantise else None
    writer = BankWriter(
        options.output,
        memory_shape(trained.net.config),
        options.dtype,
        weights_fingerprint(trained.net),
        store.fingerprint,
        part=f"{options.part}of{options.parts}",
        quantiser=codec,
    )
    edges = np.linspace(0, len(store), options.parts + 1).astype(np.int64)
    mine = np.arange(edges[options.part], edges[options.part + 1])
    left = np.setdiff1d(mine, writer.written())
    if len(left) < len(mine):
        console.print(f"{options.output}: {len(mine) - len(left):,} of {len(mine):,} references were written before")
    with writer, CountProgress(console, "writing memories", len(left)) as advance:
        for first in range(0, len(left), options.batch_size):
            ids = left[first : first + options.batch_size]
            writer.write(ids, as_stored(write_memories(trained.net, *store.read(ids)), options.dtype))
            advance(len(ids))
    finish(writer, len(store), console)


def share_device(part: int) -> "torch.device":
    """Return the GPU of this rank, or the CPU when there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", part)))
    return torch.device("cuda", local % torch.cuda.device_count())


def check_model(net: "LanguageModel", store: "ReferenceStore", tokenizer: str, checkpoint: Path) -> None:
    """Raise `DataError` unless the model can write these references; tokenizer: fingerprint of the model's."""
    from data_prep import DataError

    if net.explicit is None:
        raise DataError(
            f"--checkpoint: {checkpoint} has no explicit memory, or is of a phase with memory: off; give a checkpoint "
            "of a phase that was trained with references"
        )
    if store.manifest.tokenizer.fingerprint != tokenizer:
        raise DataError(
            f"--references: {store.folder} was made with another tokenizer than {checkpoint}; give references of the "
            "checkpoint's run"
        )
    if store.length > net.explicit.reference_length:
        raise DataError(
            f"--references: {store.folder} has references of up to {store.length} tokens, but the model writes at most "
            f"{net.explicit.reference_length} (model.explicit.reference_length); prepare shorter references"
        )


def make_codec(options: argparse.Namespace, net: "LanguageModel", store: "ReferenceStore") -> "Quantiser":
    """Return the bank's codec: the first process trains and saves it, the others wait and read it."""
    import numpy as np

    from data_prep.bank import Quantiser
    from data_prep.bank.layout import locked
    from data_prep.bank.quantise import untrained
    from evaluation.memories import as_stored, write_memories
    from model.explicit.references import memory_shape

    untrained(options.quantise, memory_shape(net.config)[-1])  # raises for an unknown name before a file is made
    with locked(options.output, ".codec.lock"):
        if Quantiser.is_saved(options.output):
            return Quantiser.load(options.output)
        count = min(options.quantise_sample, len(store))
        ids = np.sort(np.random.default_rng(0).permutation(len(store))[:count])
        parts = [ids[at : at + options.batch_size] for at in range(0, count, options.batch_size)]
        sample = [as_stored(write_memories(net, *store.read(part)), options.dtype) for part in parts]
        codec = Quantiser.train(np.concatenate(sample), options.dtype, options.quantise)
        codec.save(options.output)
    return codec


def finish(writer: "BankWriter", references: int, console: "Console") -> None:
    """Write index and manifest when all references are written, which is so for the process that ends last."""
    from data_prep.bank import merge_bank

    done = len(writer.written())
    if done < references:
        console.print(
            f"{writer.folder}: {done:,} of {references:,} references are written; other shares write the rest"
        )
        return
    manifest = merge_bank(writer.folder)
    size = sum(file.bytes for file in manifest.files)
    codec = f", codec {manifest.quantiser.factory}" if manifest.quantiser else ""
    console.print(f"{writer.folder}: {manifest.memories:,} memories in {size:,} bytes{codec}")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
