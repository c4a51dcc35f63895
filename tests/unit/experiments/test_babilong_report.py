"""The tables of experiments/babilong_report.py."""

from typing import Any

import pytest

from evaluation.babilong.dense import TASKS
from evaluation.intervals import wilson
from experiments.babilong_report import best, mean, print_table


def lines(entry: str, kind: str, seed: int, shares: dict[str, float], samples: int = 50) -> list[dict[str, Any]]:
    """What the experiment logs of a model whose tasks are all answered alike."""
    described = {"entry": entry, "kind": kind, "seed": seed, "sparse": "-sparse" in entry, "span": 1}
    results = [
        {"entry": entry, "length": length, "samples": samples, **dict.fromkeys(TASKS, share)}
        for length, share in shares.items()
    ]
    return [described, *results]


LOG = [
    *lines("delta-sparse-t16-lr0.001-s0", "delta", 0, {"0k": 0.9, "1k": 0.8}),
    *lines("delta-sparse-t16-lr0.001-s1", "delta", 1, {"0k": 0.7, "1k": 0.6}),
    *lines("delta-sparse-t32-lr0.001-s0", "delta", 0, {"0k": 0.6, "1k": 0.6}),
    *lines("llama-full-t0-lr0.001-s0", "llama-full", 0, {"0k": 0.5, "1k": 0.1}),
    *lines("llama-full-t0-lr0.001-s0+rag", "llama-full+rag", 0, {"0k": 0.5, "1k": 0.4}),
]


def test_a_kind_is_shown_by_its_best_setting_and_the_mean_of_its_seeds() -> None:
    delta, llama, retrieval = best(LOG)
    assert (delta.title, delta.seeds) == ("delta, sparse writes", (0, 1))
    assert mean(delta.scores["0k"]) == pytest.approx(0.8)
    assert delta.samples == {"0k": 100, "1k": 100}
    assert llama.title == "Llama, full attention"
    assert retrieval.title == "Llama, full attention, with retrieval"
    assert retrieval.overall == pytest.approx(0.45)


def test_intervals_are_those_of_all_questions_together() -> None:
    delta = best(LOG)[0]
    questions = len(TASKS) * 100
    low, high = wilson(round(0.8 * questions), questions)
    assert delta.reach("0k") == pytest.approx((high - low) / 2, rel=0.02)
    unknown = best(lines("delta-t16-lr0.001-s0", "delta", 0, {"0k": 0.5}, samples=0))[0]
    assert unknown.reach("0k") is None


def test_a_repeated_evaluation_counts_by_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    again = lines("llama-full-t0-lr0.001-s0", "llama-full", 0, {"1k": 0.3})[1:]
    curves = best(LOG + again)
    print_table(curves)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| Llama, full attention | 0")]
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["50.0 ± 6.2", "30.0 ± 5.6", "40.0"]
