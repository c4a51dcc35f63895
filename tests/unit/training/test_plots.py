"""The loss picture: it is a whole PNG, it shows what the file says, and survives what real files contain."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.pictures import coloured
from training.monitoring import plots
from training.monitoring.records import EvalRecord, MetricsFile, StepRecord


def write_run(folder: Path, steps: int, bad_step: int = 0) -> Path:
    """A run of two equal phases with an evaluation every tenth of it, the loss falling from 10 to 2."""
    path = folder / "metrics.jsonl"
    with MetricsFile.open(path, 0) as metrics:
        for step in range(1, steps + 1):
            phase = "warmup" if step <= steps // 2 else "memory"
            loss = 2 + 8 * math.exp(-10 * step / steps)
            shown = math.nan if step == bad_step else loss
            metrics.write(StepRecord(step, step * 1000, phase, shown, 1.0, 1e-3, 100.0))
            if step % max(1, steps // 10) == 0:
                ablated = loss + 0.5 if phase == "memory" else None
                metrics.write(EvalRecord(step, step * 1000, phase, loss + 0.1, ablated))
    return path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures that are drawn, to look at what is in them."""
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return made


def test_the_picture_shows_phases_curves_and_units(tmp_path: Path, figures: list[Figure]) -> None:
    out = tmp_path / "loss.png"
    out.write_bytes(b"old picture")
    plots.plot_loss(write_run(tmp_path / "lm2-small", 200), out)
    assert imread(out).shape[1] > 1000
    assert coloured(out, plots.TRAIN) > 2000 and coloured(out, plots.VALID) > 500
    assert all(coloured(out, span) > 300_000 for span in plots.SPANS[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm2-small", "loss.png"]
    top, bottom, right = figures[0].axes
    assert figures[0].get_suptitle() == "lm2-small"
    assert top.get_ylabel() == "loss (nats per token)"
    assert (bottom.get_xlabel(), bottom.get_ylabel(), right.get_ylabel()) == (
        "tokens",
        "learning rate",
        "gradient norm",
    )
    assert [text.get_text() for text in top.texts] == ["warmup", "memory"]
    assert top.get_legend_handles_labels()[1] == ["training", "validation", "validation, memory ablated"]
    lines = {line.get_label(): line for line in top.lines}
    assert list(np.asarray(lines["validation"].get_xdata())) == [20_000.0 * part for part in range(1, 11)]
    ablated = np.asarray(lines["validation, memory ablated"].get_ydata(), dtype=float)
    assert np.isnan(ablated).tolist() == [True] * 5 + [False] * 5
    begin, end = (patch.get_extents().transformed(top.transData.inverted()) for patch in top.patches)
    assert (begin.x0, begin.x1, end.x1) == pytest.approx((0, 100_000, 200_000), abs=1e-3)
    assert begin.x1 == pytest.approx(end.x0)


def test_the_end_of_a_run_fills_the_frame(tmp_path: Path, figures: list[Figure]) -> None:
    plots.plot_loss(write_run(tmp_path, 1000), tmp_path / "loss.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 2.0
    assert 2.6 < high < 10


def test_smoothing_follows_the_curve_and_steps_over_a_hole() -> None:
    values = np.arange(101, dtype=float)
    values[50] = np.nan
    smooth = plots._smooth(values, 5)
    assert np.isfinite(smooth).all()
    assert smooth[10:40] == pytest.approx(values[10:40])
    assert smooth[50] == pytest.approx(50.0)
    assert smooth[0] == pytest.approx(1.0)  # the mean of 0, 1, 2: at an end over what there is


@pytest.mark.parametrize("steps", [0, 1, 2, 30])
def test_short_runs_and_losses_that_are_not_numbers(steps: int, tmp_path: Path) -> None:
    out = tmp_path / "loss.png"
    plots.plot_loss(write_run(tmp_path, steps, bad_step=1), out)
    spans = [coloured(out, span) > 300_000 for span in plots.SPANS[:2]]
    assert spans == [steps > 0, steps > 1]  # a phase is there from its first step
    assert (coloured(out, plots.VALID) > 100) == (steps > 0)
    curve = coloured(out, plots.TRAIN)
    assert curve > 2000 if steps == 30 else curve < 300  # nothing, or its line in the legend


def test_phases_of_the_same_name_are_two_spans() -> None:
    names = ["warmup", "memory", "memory", "warmup"]
    assert plots._phases([{"phase": name} for name in names]) == [slice(0, 1), slice(1, 3), slice(3, 4)]


@pytest.mark.parametrize(
    ("tokens", "label"), [(0, "0"), (500, "500"), (1500, "1.5K"), (2e6, "2M"), (252e9, "252B"), (1e12, "1T")]
)
def test_token_labels(tokens: float, label: str) -> None:
    assert plots._tokens_label(tokens, None) == label


@pytest.mark.parametrize("name", ["$_$", "a $^$ b", r"$\frac$"])
def test_names_are_no_formulas(tmp_path: Path, name: str, figures: list[Figure]) -> None:
    """What matplotlib would take for mathematics is a name, and its mistakes no reason to stop training."""
    folder = tmp_path / name
    folder.mkdir()
    with MetricsFile.open(folder / "metrics.jsonl", 0) as metrics:
        metrics.write(StepRecord(1, 1000, name, 2.0, 1.0, 1e-3, 100.0))
    plots.plot_loss(folder / "metrics.jsonl", tmp_path / "loss.png")
    assert figures[0].get_suptitle() == name and figures[0].axes[0].texts[0].get_text() == name
    assert coloured(tmp_path / "loss.png", plots.SPANS[0]) > 300_000
