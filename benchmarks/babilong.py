"""BABILong: a small model for qa1-qa5, trained on growing exercises with each kind of memory, equal in size and tokens.

    python benchmarks/babilong.py --babi data/babi --background data/books      every kind, configs/babilong.yaml
    python benchmarks/babilong.py --kinds delta none --ranks 2 …                some kinds, each on two ranks
    python benchmarks/babilong.py --small                                       minutes: does it all run?
    python benchmarks/babilong.py --report-only                                 the table from what was measured

Facts are bAbI's (train files to train on, test or valid files to evaluate), else the simulator's; text between them is
of books, of which every fifth is kept for evaluation.  Everything is below --work and is never done twice: what was
interrupted goes on by the same command.  Kinds with fewer parameters get a wider feed-forward network.
"""

import argparse
import json
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

from claims import claim

from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.generator import Generator
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.sources import Generated
from evaluation.results import Results, load_results
from model import ModelConfig
from model.cost import count_parameters
from training.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "babilong.yaml"
TASKS = "qa1,qa2,qa3,qa4,qa5"
TRAINED = ("0k", "512", "1k", "2k", "4k")
KINDS = {
    "delta": ["model.memory={kind: delta, heads: 2}"],
    "lm2-time": ["model.memory={kind: lm2, flow: time, slots: 64, heads: 2}"],
    "rmt": ["model.memory={kind: rmt, slots: 16, rmt_open: 1.0}"],
    # all of what it was trained on, and at most as much before that
    "none": ["model.memory={kind: none}", "model.segment_length=4096", "model.attention_span=2"],
}
SMALL = ["model.hidden_size=64", "model.num_layers=2", "training.eval_every_steps=20"]
SMALL_TOKENS = (600_000, 200_000, 200_000, 200_000)
OVER_RMT, OVER_LLAMA = 0.371, 0.863  # LM2's own claim, relative


def main() -> None:
    options = parse_arguments()
    if not options.report_only:
        books = split_books(options.background)
        prepare(options, books[0])
        for kind in options.kinds:
            train(options, kind)
            evaluate(options, kind, books[1])
    report(options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", metavar="FOLDER", help="bAbI's files; none: the simulator")
    parser.add_argument("--background", type=Path, metavar="FOLDER", help="books; none: Python's documentation strings")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="default runs/babilong, or runs/babilong-small")
    parser.add_argument("--exercises", type=int, metavar="N", help="of a task and length (default 10,000; small 500)")
    parser.add_argument("--lengths", default=None, help="to evaluate (default 0k,1k,2k,4k,8k,16k,64k; small 0k,512,1k)")
    parser.add_argument("--samples", type=int, help="of a cell (default 100; small 20)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a tenth of the width, a thirtieth of the tokens")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the configuration, for all kinds")
    options = parser.parse_intermixed_args()
    options.work = (options.work or Path("runs") / ("babilong-small" if options.small else "babilong")).resolve()
    options.babi = options.babi and str(Path(options.babi).resolve())
    options.background = options.background and options.background.resolve()
    options.exercises = options.exercises or (500 if options.small else 10_000)
    options.samples = options.samples or (20 if options.small else 100)
    options.lengths = options.lengths or ("0k,512,1k" if options.small else "0k,1k,2k,4k,8k,16k,64k")
    return options


def split_books(folder: Path | None) -> tuple[list[str], list[str]]:
    """Books to train on and every fifth to evaluate with; none: the same documentation strings for both."""
    if folder is None:
        return [], []
    paths = sorted(folder.glob("*.txt"))
    return [str(p) for i, p in enumerate(paths) if i % 5 != 4], [str(p) for i, p in enumerate(paths) if i % 5 == 4]


def prepare(options: argparse.Namespace, books: list[str]) -> None:
    """Tokenizer, exercises and shards."""
    tokenizer = options.work / "tokenizer.model"
    if not tokenizer.is_file():
        options.work.mkdir(parents=True, exist_ok=True)
        train_sentencepiece(tokenizer_texts(options, open_background(books)), 2048, tokenizer)
    if not (options.work / "exercises" / "babilong.json").is_file():
        command = ["launchers/babilong.py", "--part", "train", "--tokenizer", str(tokenizer), "--tasks", TASKS]
        command += ["--lengths", ",".join(TRAINED), "--samples", str(options.exercises), "--seed", str(options.seed)]
        run([*command, "--output", str(options.work / "exercises"), *facts_and(options, books)])
    run(["launchers/prepare_data.py", "--config", str(CONFIG), *common(options)])


def tokenizer_texts(options: argparse.Namespace, background: Background) -> list[str]:
    """Facts, questions and answers of every task beside as much of the books."""
    source = Generated(Generator(None, None, options.seed, "train"), options.babi)  # type: ignore[arg-type]
    questions = chain.from_iterable(islice(source.questions(task), 1000) for task in TASKS.split(","))
    facts = [" ".join((*question.facts, question.question, question.answer)) for question in questions]
    sentences = background.sentences(Keyed("tokenizer", options.seed), 100_000)
    return facts + list(islice(sentences, 20_000))


def train(options: argparse.Namespace, kind: str) -> None:
    launcher = ["launchers/pretrain.py"]
    if options.ranks > 1:
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(options.ranks), *launcher]
    run([*launcher, "--config", str(CONFIG), f"run.name={kind}", *overrides(options, kind)])


def evaluate(options: argparse.Namespace, kind: str, books: list[str]) -> None:
    tasks = ",".join(f"babilong/{task}" for task in TASKS.split(","))
    command = ["launchers/evaluate.py", "--checkpoint", str(options.work / kind), "--mode", "finetuned"]
    command += ["--tasks", tasks, "--lengths", options.lengths, "--samples", str(options.samples)]
    run([*command, "--output", str(result_path(options, kind)), *facts_and(options, books)])


def facts_and(options: argparse.Namespace, books: list[str]) -> list[str]:
    return (["--babi", options.babi] if options.babi else []) + (["--background", *books] if books else [])


def common(options: argparse.Namespace) -> list[str]:
    """Overrides for every kind: places, and what makes it small."""
    work = options.work
    places = [f"data.path={work / 'data'}", f"run.output_dir={work}", f"run.seed={options.seed}"]
    places += [f"data.prepare.sources.{i}.path={work / 'exercises' / name}" for i, name in enumerate(TRAINED)]
    places += [f"data.prepare.tokenizer.path={work / 'tokenizer.model'}", "tracking.enabled=false"]
    if options.small:
        places += SMALL
        for phase, tokens in enumerate(SMALL_TOKENS):
            places += [f"phases.{phase}.tokens={tokens}", f"phases.{phase}.lr.warmup_tokens={tokens // 10}"]
        places.append(f"phases.3.lr.decay_tokens={SMALL_TOKENS[3] // 2}")
    return [*places, *options.overrides]


def overrides(options: argparse.Namespace, kind: str) -> list[str]:
    """Everything in which a kind's run differs from the configuration; of all kinds' parameters as many."""
    configs = {name: configured(options, name) for name in KINDS}
    goal = max(count_parameters(config.model).total for config in configs.values())
    return [*kind_overrides(options, kind), f"model.ffn_size={widened(configs[kind].model, goal)}"]


def kind_overrides(options: argparse.Namespace, kind: str) -> list[str]:
    memory = [] if kind != "none" else [f"phases.{phase}.memory=false" for phase in range(4)]
    return [*common(options), *KINDS[kind], *memory]


def configured(options: argparse.Namespace, kind: str) -> RunConfig:
    return load_config(CONFIG, kind_overrides(options, kind))


def widened(config: ModelConfig, parameters: int) -> int:
    """ffn_size with which the model has about so many parameters."""
    wider = config.model_copy(update={"ffn_size": config.ffn_size + 8})
    of_eight = count_parameters(wider).total - count_parameters(config).total
    return config.ffn_size + 8 * round((parameters - count_parameters(config).total) / of_eight)


def run(command: list[str]) -> None:
    """A command of this project; what it prints is seen. A failure ends the benchmark with its code."""
    program = command if command[0].endswith("deepspeed") else [sys.executable, *command]
    print("$", " ".join(command), flush=True)
    code = subprocess.run(program, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def result_path(options: argparse.Namespace, kind: str) -> Path:
    return Path(options.work / kind / "evaluation" / "babilong.json")


def report(options: argparse.Namespace) -> None:
    """Means over qa1-qa5 by length, and the claims."""
    found = {kind: load_results(p) for kind in KINDS if (p := result_path(options, kind)).is_file()}
    lengths = options.lengths.split(",")
    print(f"\nexact match, mean of {TASKS}, %")
    print(f"{'':10}{'parameters':>12}{'tokens':>12}" + "".join(f"{length:>8}" for length in lengths) + "    mean")
    means: dict[str, dict[str, float]] = {}
    for kind, results in found.items():
        means[kind] = {length: value for length in lengths if (value := mean(results, length)) is not None}
        cells = "".join(f"{100 * means[kind][n]:>8.1f}" if n in means[kind] else f"{'-':>8}" for n in lengths)
        print(f"{kind:10}{results.model.parameters:>12,}{results.tokens:>12,}{cells}{100 * overall(means[kind]):>8.1f}")
    for kind, results in found.items():
        print(f"{kind}: " + ", ".join(f"{task} {score}" for task, score in by_task(results, lengths).items()))
    print(json.dumps({"facts": {k: r.data["babilong"]["facts"] for k, r in found.items()}}))
    ours = max((overall(means[kind]) for kind in ("delta", "lm2-time") if kind in means), default=None)
    for other, goal in (("rmt", OVER_RMT), ("none", OVER_LLAMA)):
        measured = ours is not None and other in means and overall(means[other]) > 0
        gain = ours / overall(means[other]) - 1 if measured and ours is not None else None
        claim(
            f"BABILong qa1-5, ours over {other}, relative", gain, f">= {goal}", None if gain is None else gain >= goal
        )
    for length, goal in (("64k", 0.95), ("1M", 0.90)):
        best = max((m[length] for k, m in means.items() if k in ("delta", "lm2-time") and length in m), default=None)
        claim(f"BABILong qa1-5 mean at {length}, ours", best, f">= {goal}", None if best is None else best >= goal)


def mean(results: Results, length: str) -> float | None:
    rows = [row for row in results.rows if row.length == length and row.scorer == "exact" and row.accuracy is not None]
    return sum(row.accuracy or 0 for row in rows) / len(rows) if rows else None


def overall(by_length: dict[str, float]) -> float:
    return sum(by_length.values()) / max(1, len(by_length))


def by_task(results: Results, lengths: list[str]) -> dict[str, str]:
    """task -> percent at each length"""
    found = {(row.task, row.length): row.accuracy or 0 for row in results.rows if row.scorer == "exact"}
    tasks = dict.fromkeys(row.task.removeprefix("babilong/") for row in results.rows)
    return {t: "/".join(f"{100 * found.get((f'babilong/{t}', n), 0):.0f}" for n in lengths) for t in tasks}


if __name__ == "__main__":
    main()
