"""The results file, and the interval beside every share."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from data_prep import DataError
from evaluation.intervals import wilson
from evaluation.results import ModelFacts, Results, Row, load_results, share_row

FACTS = ModelFacts(
    name="a", kind="delta", parameters=3, hidden_size=2, num_layers=1, segment_length=4, vocab_size=5, memory_on=True
)


def new_results() -> Results:
    return Results(
        checkpoint="runs/a/checkpoints/step-00000004", run="a", model=FACTS, tokens=100, phase="task", seed=0,
        device="CPU", date="2026-11-20T00:00:00+00:00", command="python launchers/evaluate.py",
    )  # fmt: skip


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_is_scipys(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_interval_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_written_and_read_again(tmp_path: Path) -> None:
    results = new_results()
    results.rows.append(
        share_row(51, 100, task="babilong/qa1", length="4k", tokens=4000, scorer="official", mode="prompt")
    )
    results.rows.append(Row(task="perplexity", length="4k", samples=3, scorer="nats per token", value=3.1))
    results.series["perplexity_by_position"] = {"position": [1, 2], "loss": [3.5, 3.0]}
    path = tmp_path / "evaluation" / "a.json"
    results.save(path)
    assert load_results(path) == results
    row = json.loads(path.read_text())["rows"][0]
    assert (row["accuracy"], row["low"] < 0.51 < row["high"], "value" in row) == (0.51, True, False)
    assert results.has("perplexity", "4k")
    assert not results.has("perplexity", "8k")


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json: cannot be read .*launchers/evaluate\.py"):
        load_results(path)
    path.write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"a\.json: is not a result of launchers/evaluate\.py, format 1: format"):
        load_results(path)
