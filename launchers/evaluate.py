"""Evaluate a checkpoint: BABILong, MMLU, perplexity by position, with intervals."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/evaluate.py --checkpoint runs/quickstart --tasks perplexity \\
      --lengths 1k,4k,16k --samples 20
      nats a token in the first 1,000, 4,000, 16,000 tokens of texts; nothing else is needed
  python launchers/evaluate.py --checkpoint runs/mine --tasks babilong --mode finetuned \\
      --babi data/babi --background data/books --lengths 0k,4k,16k
      a model trained on exercises that launchers/babilong.py wrote
"""
MORE = """\
  python launchers/evaluate.py --checkpoint runs/mine --tasks babilong/qa1,mmlu --mmlu data/mmlu --mode prompt …
      a pretrained model, asked with an instruction and examples; single tasks are SUITE/TASK
  python launchers/evaluate.py --checkpoint runs/llama --tasks babilong --retrieval bm25 --top-k 5 --unit sentence …
      the retrieval baseline: the model reads the five sentences that are most similar to the question
  python launchers/evaluate.py --checkpoint runs/mine --tasks lm_eval:piqa,lm_eval:arc_easy --samples 500
      tasks of lm-evaluation-harness (extra `harness`), with their own prompts and shots; --include FOLDER adds yours
  python launchers/evaluate.py --checkpoint runs/memory3 --tasks nq,perplexity --questions nq.jsonl --references refs
      a model with explicit memory: questions without references, with references as text, and as memories; perplexity
      with and without them; --bank FOLDER reads memories that launchers/write_bank.py wrote

BABILong's facts: --babi (bAbI's files), or --released (the published samples), else a simulator of this project, which
results and tables name.  Background: --background, else documentation strings of Python's standard library.
The same command continues an interrupted evaluation; tasks and lengths can be added to a finished one.
Every answer is kept beside the results, in FILE.answers/.

exit codes: 0 done; 2 bad input, nothing measured; 130 interrupted, what was measured is written.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path, place, seed

    parser = command_parser("evaluate", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("--checkpoint", type=path, required=True, metavar="PATH", help="run folder (its latest) or checkpoint folder")
    add("--tasks", default="babilong", metavar="NAME,…",
        help="babilong, mmlu, perplexity, nq, lm_eval:TASK, babilong/qa1, … (default babilong)")  # fmt: skip
    add("--lengths", default="0k,1k,2k,4k", metavar="L,…", help="0k, 4k, 128k, 1M or tokens (default 0k,1k,2k,4k)")
    add("--samples", type=number, default=100, metavar="N",
        help="for a task and length; questions of an MMLU subject (default 100)")  # fmt: skip
    add("--mode", choices=("prompt", "finetuned"), default="prompt", help="how BABILong is asked (default prompt)")
    add("--output", type=path, metavar="FILE.json", help="default RUN/evaluation/STEP-MODE.json")
    add("--babi", type=place, metavar="FOLDER", help="bAbI's files, qa1_test.txt or qa1_…_test.txt; or hf:NAME")
    add("--background", type=place, nargs="+", default=[], metavar="PATH",
        help="books: *.txt files, folders or globs; or hf:NAME")  # fmt: skip
    add("--mmlu", type=path, metavar="FOLDER", help="MMLU's CSV files: dev/ and test/ or val/")
    add("--released", type=place, metavar="FOLDER",
        help=more("published samples, TASK/LENGTH.json; or hf:RMT-team/babilong"))  # fmt: skip
    add("--shots", type=number, default=5, metavar="K", help=more("MMLU: examples before a question (default 5)"))
    add("--retrieval", choices=("none", "bm25", "dense"), default="none", help=more("read only what retrieval finds"))
    add("--top-k", type=number, default=5, metavar="K", help=more("retrieval: parts to read (default 5)"))
    add("--unit", choices=("sentence", "chunk"), default="sentence",
        help=more("retrieval: what a part is (chunk: 512 tokens)"))  # fmt: skip
    add("--dense-model", default="sentence-transformers/all-MiniLM-L6-v2", metavar="NAME",
        help=more("retrieval: model of the embeddings"))  # fmt: skip
    add("--questions", type=path, metavar="FILE",
        help=more("nq: JSONL, a line {question, answers, passage}, or as SQuAD"))  # fmt: skip
    add("--references", type=path, metavar="FOLDER",
        help=more("explicit memory: references that prepare_data.py cut"))  # fmt: skip
    add("--bank", type=path, metavar="FOLDER",
        help=more("explicit memory: memories of the references (default: written when retrieved)"))  # fmt: skip
    add("--include", type=path, metavar="FOLDER", help=more("lm_eval: task files of your own"))
    add("--seed", type=seed, default=0, metavar="N",
        help=more("seed of the samples: the same seed gives the same text (default 0)"))  # fmt: skip
    add("--batch-size", type=number, default=8, metavar="N", help=more("samples read at once (default 8)"))
    add("--data", type=path, metavar="FOLDER", help=more("tokenizer's folder, if the run's data moved"))
    options = parser.parse_args(argv)
    for name in ("top_k", "unit", "dense_model"):
        if options.retrieval == "none" and getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to retrieval; add --retrieval bm25 or dense")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import EXIT_INTERRUPTED, exit_code, say_error, typed
    from training.errors import TrainingError

    try:
        return exit_code(lambda: run(options, typed("evaluate", argv)), bad_input=(TrainingError,))
    except KeyboardInterrupt:
        say_error("interrupted; the same command continues")
        return EXIT_INTERRUPTED


def run(given: argparse.Namespace, command: str) -> None:
    """Evaluate the checkpoint; command: the command line that the results name.  Raises one of `BAD_INPUT`."""
    from evaluation.command import evaluate
    from evaluation.options import Options, check_positive, parse_lengths, parse_tasks

    check_positive(samples=given.samples, top_k=given.top_k, batch_size=given.batch_size, shots=given.shots + 1)
    options = Options(
        tasks=parse_tasks(given.tasks),
        lengths=parse_lengths(given.lengths),
        samples=given.samples,
        mode=given.mode,
        babi=given.babi,
        background=tuple(given.background),
        released=given.released,
        mmlu=given.mmlu,
        shots=given.shots,
        retrieval=given.retrieval,
        top_k=given.top_k,
        unit=given.unit,
        dense_model=given.dense_model,
        seed=given.seed,
        questions=given.questions,
        references=given.references,
        bank=given.bank,
        include=given.include,
    )
    evaluate(given.checkpoint, options, given.output, given.data, given.batch_size, command)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
