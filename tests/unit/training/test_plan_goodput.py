"""The share of time that trains when devices fail: the formula against a simulation, and the command."""

import random
from pathlib import Path

import pytest

from launchers.plan import main
from training.planning.goodput import MTBF, best_interval, training_share

TRACES, FAILURES = 100, 20
CASES = [  # mean time between failures, seconds a checkpoint holds training, seconds of a restart
    (3600.0, 1.0, 60.0),
    (3600.0, 60.0, 300.0),
    (600.0, 30.0, 300.0),
    (100000.0, 5.0, 300.0),
]


def simulated_share(interval: float, between: float, held: float, restart: float, seed: int) -> float:
    """Training by the clock until about `FAILURES` failures have come: work that a checkpoint keeps, over the time."""
    draw, clock, kept = random.Random(seed), 0.0, 0.0
    failure = draw.expovariate(1 / between)
    for _ in range(FAILURES):
        while clock + interval + held <= failure:  # the next checkpoint comes before the next failure
            clock, kept = clock + interval + held, kept + interval
        clock, failure = failure, failure + draw.expovariate(1 / between)
        while clock + restart > failure:  # it fails again before it has restarted
            clock, failure = failure, failure + draw.expovariate(1 / between)
        clock += restart
    return kept / clock


def mean_share(interval: float, between: float, held: float, restart: float) -> float:
    return sum(simulated_share(interval, between, held, restart, seed) for seed in range(TRACES)) / TRACES


@pytest.mark.parametrize("between, held, restart", CASES)
def test_the_formula_is_within_5_percent_of_the_simulation(between: float, held: float, restart: float) -> None:
    best = best_interval(between, held)
    for interval in (best / 3, best, 3 * best):
        assert training_share(interval, between, held, restart) == pytest.approx(
            mean_share(interval, between, held, restart), rel=0.05
        )


@pytest.mark.parametrize("between, held, restart", CASES)
def test_no_other_interval_leaves_more_time_to_training(between: float, held: float, restart: float) -> None:
    best = best_interval(between, held)
    found = mean_share(best, between, held, restart)
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert found > mean_share(factor * best, between, held, restart) - 0.002
    assert found > mean_share(8 * best, between, held, restart) + 0.002


def test_longer_than_any_time_between_failures_nothing_trains() -> None:
    assert training_share(1e6, 1.0, 1.0, 1.0) == 0.0
    assert best_interval(10.0, 100.0) == 10.0


def test_the_command_prints_a_table_and_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "configs/lm2_1.7b.yaml", "--devices", "h200", "--scale", "8,512,4096"]
    assert main([*arguments, "--mtbf", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("8 ", "512 ", "4,096 "))}
    trains = [float(next(word for word in rows[count] if word.endswith("%"))[:-1]) for count in ("8", "512", "4,096")]
    assert 100 > trains[0] > trains[1] > trains[2] > 90
    assert any("a default" in line and f"{MTBF / 3600:,.0f} hours" in line for line in lines)
    picture = next(tmp_path.glob("goodput-*.png")).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    assert main([*arguments, "--mtbf", "5000", "--out", str(tmp_path)]) == 0
    assert not any("a default" in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("hours", ["0", "-1", "soon", "nan", "inf"])
def test_hours_that_are_none_are_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "configs/lm2_1.7b.yaml", f"--mtbf={hours}"]) == 2
    assert f"--mtbf: '{hours}' must be" in capsys.readouterr().err
