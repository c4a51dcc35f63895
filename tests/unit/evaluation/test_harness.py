"""lm-evaluation-harness on our models: its own Transformers adapter on the exported folder, and our MMLU, agree."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[harness]'")

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from evaluation.harness import HarnessModel, run_harness
from evaluation.mmlu import Mmlu, evaluate_subject
from evaluation.reader import Reader
from model import build_model
from tests.reference.small import DEPTH, LM2, NONE, awake, tiny
from tests.reference.small import one_thread as one_thread
from tests.unit.training.exported import trained
from training.checkpoint.trained_model import LoadedModel
from training.errors import ConfigError
from training.huggingface.export import export

pytestmark = pytest.mark.usefixtures("code_cache")
KINDS = {"none": NONE, "lm2": LM2, "lm2-depth": DEPTH}
DATA = os.environ.get("MEMTRAIN_DATA")
PAIRS = [
    ("def f(x):", " return x"),
    ("", "import os"),
    ("a  ", "b"),
    ("class A:\n    def", " g(self):\n" * 9),
    ("x", " y"),
]
TEXTS = ["import sys\n" * 12, "a", "def f(x):\n    return x\n"]


@pytest.fixture
def own_tasks_only(monkeypatch):
    """To index the harness's own ten thousand files takes seconds."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))


def instances(kind: str, arguments: Sequence[tuple[object, ...]]) -> list[Instance]:
    return [Instance(kind, {}, found, index) for index, found in enumerate(arguments)]


@pytest.fixture(scope="module", params=KINDS)
def models(request, prepared_data: Path, tmp_path_factory):
    """Our adapter, and the harness's own on the exported folder."""
    pytest.importorskip("accelerate", reason="the harness's own adapter needs accelerate")
    from lm_eval.models.huggingface import HFLM

    given = made(KINDS[request.param], prepared_data)
    folder = tmp_path_factory.mktemp("out") / request.param.replace("-", "_")
    export(given, folder, given.tokenizer(), form="memtrain")

    @functools.cache
    def theirs(**arguments: Any) -> HFLM:
        fixed: dict[str, Any] = {"trust_remote_code": True, "dtype": "float32", "device": "cpu", "batch_size": 2}
        return HFLM(pretrained=str(folder), **fixed, **arguments)

    return HarnessModel(given, batch_size=3), theirs


def made(memory, data: Path) -> LoadedModel:
    net = awake(build_model(tiny(memory, vocab_size=512, segment_length=16), seed=2))
    return trained(net, sequence_length=64, data=data)


def test_log_likelihoods_are_those_of_the_harness_s_own_adapter(models):
    ours, theirs = models
    found = ours.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    expected = theirs().loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    for (score, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert score == pytest.approx(wanted, abs=1e-4) and greedy == wanted_greedy


def test_rolling_log_likelihoods_are_those_of_the_harness_s_own_adapter(models):
    ours, theirs = models
    requests = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    found = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    # add_bos_token: with it their adapter predicts a second BOS after the first
    assert found == pytest.approx(
        theirs(add_bos_token=False).loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-4
    )


def test_greedy_answers_are_those_of_the_harness_s_own_adapter(models, monkeypatch):
    ours, theirs = models
    # an untrained model writes broken UTF-8, which SentencePiece and tokenizers spell differently
    monkeypatch.setattr(ours.ids, "decode", lambda ids: theirs().tokenizer.decode(ids, skip_special_tokens=True))
    settings = {"until": ["e", "\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = instances("generate_until", [(text, settings) for text in TEXTS])
    assert ours.generate_until(requests) == theirs().generate_until(requests, disable_tqdm=True)
    endless = instances("generate_until", [(TEXTS[0], {"until": [], "max_gen_toks": 40})])
    assert ours.generate_until(endless) == theirs().generate_until(endless, disable_tqdm=True)


def test_an_answer_does_not_depend_on_its_batch(models):
    ours, _ = models
    requests = instances("loglikelihood", PAIRS)
    together = ours.loglikelihood(requests, disable_tqdm=True)
    alone = [ours.loglikelihood([request], disable_tqdm=True)[0] for request in requests]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-5)


def test_sampling_is_refused(models):
    with pytest.raises(ConfigError, match="answers are greedy"):
        models[0].generate_until(instances("generate_until", [("a", {"do_sample": True, "temperature": 0.7})]))


def test_an_unknown_task_is_named(prepared_data, own_tasks_only):
    with pytest.raises(ConfigError, match="has no no_such_task_at_all"):
        run_harness(made(NONE, prepared_data), ["no_such_task_at_all"])


def local_task(folder: Path, subject: str, mmlu: Mmlu) -> str:
    """A task file like the harness's `mmlu`, on the questions of our files; its name."""
    name, about = f"local_mmlu_{subject}", subject.replace("_", " ")
    choices = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate("ABCD"))
    for split in ("dev", "val"):
        rows = [
            {"question": p.question, "choices": list(p.choices), "answer": p.answer} for p in mmlu._read(subject, split)
        ]
        (folder / f"{subject}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(folder / f"{subject}_{s}.jsonl") for s in ("dev", "val")}},
        "test_split": "val",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": mmlu.shots,
        "output_type": "multiple_choice",
        "description": f"The following are multiple choice questions (with answers) about {about}.\n\n",
        "doc_to_text": "{{question.strip()}}\n" + choices + "Answer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return name


@pytest.mark.skipif(DATA is None, reason="MEMTRAIN_DATA names no folder with mmlu/")
@pytest.mark.parametrize("kind", ["none", "lm2"])
def test_our_mmlu_is_the_harness_s(kind, prepared_data, tmp_path, monkeypatch, own_tasks_only):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    subjects, given = ("abstract_algebra", "global_facts", "marketing"), made(KINDS[kind], prepared_data)
    mmlu = Mmlu(Path(str(DATA)) / "mmlu", shots=2)
    names = [local_task(tmp_path, subject, mmlu) for subject in subjects]
    theirs = {row.task: row for row in run_harness(given, names, include=tmp_path, limit=12)}
    for subject, name in zip(subjects, names, strict=True):
        ours = evaluate_subject(Reader(given.net, 4), given.tokenizer(), mmlu, subject, 12)
        found = theirs[f"lm_eval:{name}"]
        assert (found.samples, found.accuracy, found.shots) == (ours.samples, ours.accuracy, ours.shots)
        assert (found.low, found.high) == (ours.low, ours.high)
