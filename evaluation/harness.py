"""Run tasks of lm-evaluation-harness on a checkpoint; the memory is carried through contexts of any length.

python -m evaluation.harness --checkpoint runs/mine --tasks hellaswag,arc_easy --limit 100
python -m evaluation.harness --checkpoint runs/mine --tasks my_task --include tasks/ --output results.json

It needs the extra `harness` (pip install -e ".[harness]"). After `import evaluation.harness` the harness itself has
the model `memtrain`, with the argument checkpoint=PATH.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep import Tokenizer
from data_prep.files import write_text
from evaluation.reader import Reader
from evaluation.results import Row, share_row
from training.checkpoint.trained_model import LoadedModel, load_model
from training.errors import BAD_INPUT, EXIT_BAD_INPUT, ConfigError, TrainingError

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(f'lm-evaluation-harness is missing ({error}): pip install -e ".[harness]"') from error

_SHARES = ("acc", "acc_norm", "exact_match", "em")  # metrics that are a share of right answers
_MAX_TOKENS = 256  # of an answer, when the task has no limit


@register_model("memtrain")
class HarnessModel(TemplateLM):
    """A checkpoint with the interface of lm-evaluation-harness.

    Texts begin with BOS, as documents did in training. Contexts have no maximal length: nothing is truncated, and a
    document's perplexity is computed in one stream, not in windows.
    """

    def __init__(
        self,
        checkpoint: "str | LoadedModel",
        batch_size: int | str = 8,
        device: str | None = None,
        data: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load the model, unless it is loaded already.

        Args:
            checkpoint: a run's folder, a checkpoint's folder or a loaded model.
            data: the tokenizer's folder, if it has moved.
            max_batch_size: the harness passes it, and it is not used.
        """
        super().__init__()
        if isinstance(checkpoint, str):
            checkpoint = load_model(Path(checkpoint), torch.device(device) if device else None)
        self.ids: Tokenizer = checkpoint.tokenizer(Path(data) if data else None)
        self.reader = Reader(checkpoint.net, 8 if batch_size == "auto" else int(batch_size))

    @property
    def eot_token_id(self) -> int:
        return self.ids.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.ids.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.ids.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_ignored: Any) -> list[int]:
        bos = [] if add_special_tokens is False else [self.ids.bos_id]
        return bos + self.ids.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_ignored: Any
    ) -> list[tuple[float, bool]]:
        answers = self.reader.log_likelihoods([(context, continuation) for _, context, continuation in requests])
        for (pair, _, _), answer in zip(requests, answers, strict=True):
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return ln P(text | BOS) of whole documents, each read once from begin to end."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        totals = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), self.reader.batch_size):
            batch = order[start : start + self.reader.batch_size]
            for index, total in zip(batch, self._totals([texts[i] for i in batch]), strict=True):
                totals[index] = total
                self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, total)
        return totals

    def _totals(self, texts: Sequence[list[int]]) -> list[float]:
        """Return the sum of ln P of each text's tokens after the first. Only the ids' memory grows with the texts."""
        labels = np.array([len(text) - 1 for text in texts])
        ids = np.zeros((len(texts), int(labels.max()) + 1), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text  # padded at the end with zeros, which no earlier token sees
        totals, seen = np.zeros(len(texts)), 0
        for loss in self.reader.losses(ids):
            within = seen + np.arange(loss.shape[1]) < labels[:, None]
            totals -= np.where(within, loss, 0.0).sum(axis=1)
            seen += loss.shape[1]
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy answers, cut before the first of the task's `until` texts.

        Raises `ConfigError` when a task asks for sampling.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            wanted = _Wanted.of(requests[members[0]].args[1])
            prompts = [self.tok_encode(requests[i].args[0]) for i in members]
            answers = self.reader.answers(prompts, wanted.tokens, (self.ids.eos_id,), self._stop(wanted))
            for index, answer in zip(members, answers, strict=True):
                texts[index] = wanted.cut(self.ids.decode(answer))
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
        return texts

    def _stop(self, wanted: "_Wanted") -> Callable[[list[int]], bool]:
        last = (
            4 * max((len(text) for text in wanted.until), default=0) + 8
        )  # tokens; a character can take four of them, one for each byte

        def ended(answer: list[int]) -> bool:
            text = self.ids.decode(answer[-last:])
            return any(until in text for until in wanted.until)

        return ended


@dataclass(frozen=True)
class _Wanted:
    """A task's settings for an answer: the texts that end it, and its maximal tokens."""

    until: tuple[str, ...]
    tokens: int

    @classmethod
    def of(cls, given: dict[str, Any]) -> "_Wanted":
        if given.get("do_sample") and float(given.get("temperature", 1.0)) > 0:
            raise ConfigError(
                f"generation_kwargs: {given} asks for sampling, but answers are greedy; use do_sample: false"
            )
        until = given.get("until") or ()
        tokens = int(given.get("max_gen_toks", given.get("max_new_tokens", _MAX_TOKENS)))
        return cls(tuple(text for text in ([until] if isinstance(until, str) else until) if text), tokens)

    def cut(self, text: str) -> str:
        """Return `text` up to the first of the texts that end it."""
        return text[: min([text.index(until) for until in self.until if until in text], default=len(text))]


def run_harness(
    checkpoint: "Path | LoadedModel",
    tasks: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    data: Path | None = None,
    include: Path | None = None,
    seed: int = 0,
) -> list[Row]:
    """Return a row for every task and metric; the row's task is `lm_eval:TASK`.

    Args: limit: samples of a task, None: all; shots: None: the task's own; include: folder of your own task files.
    Raises `ConfigError` for a task that the harness does not know.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise ConfigError(
            f"--tasks: lm-evaluation-harness has no {', '.join(unknown)}; `lm_eval ls tasks` lists its tasks, "
            "--include FOLDER adds your own"
        )
    source = str(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    model = HarnessModel(source, batch_size, data=str(data) if data else None)
    results = simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert results is not None
    return list(_rows(results))


def _rows(results: dict[str, Any]) -> Iterator[Row]:
    for task, metrics in results["results"].items():
        samples = results["n-samples"].get(task, {}).get("effective", metrics.get("sample_len", 0))
        shots = results["n-shot"].get(task)
        for key, value in metrics.items():
            metric, _, chosen_by = key.partition(",")
            if not isinstance(value, float) or "stderr" in metric:
                continue
            scorer = metric if chosen_by in ("", "none") else key
            fields = {"task": f"lm_eval:{task}", "scorer": scorer, "shots": shots}
            if metric in _SHARES:
                yield share_row(round(value * samples), samples, **fields)
            else:
                yield Row(samples=samples, value=value, **fields)


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of `python -m evaluation.harness`."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="run or checkpoint folder")
    parser.add_argument("--tasks", required=True, metavar="NAME,…", help="`lm_eval ls tasks` lists them")
    parser.add_argument("--include", type=Path, default=None, metavar="FOLDER", help="task files of your own (*.yaml)")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="samples of a task (default: all)")
    parser.add_argument("--shots", type=int, default=None, metavar="K", help="examples (default: the task's own)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples read at once (default 8)")
    parser.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="tokenizer's folder, if it moved")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="the rows, as JSON")
    return parser.parse_args()


def main() -> int:
    """Run the harness's tasks, print and write the rows, and return the exit code."""
    arguments = parse_arguments()
    tasks = [task for task in arguments.tasks.split(",") if task]
    options = {name: getattr(arguments, name) for name in ("limit", "shots", "batch_size", "data", "include")}
    try:
        rows = run_harness(arguments.checkpoint, tasks, **options)
    except (*BAD_INPUT, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, BAD_INPUT) else 1
    for row in rows:
        shown = f"{row.accuracy:.4f} ({row.low:.3f}–{row.high:.3f})" if row.accuracy is not None else f"{row.value:.4f}"
        print(f"{row.task}  {row.scorer}  {shown}  {row.samples} samples")
    if arguments.output is not None:
        content = [row.model_dump(exclude_none=True) for row in rows]
        write_text(arguments.output, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
