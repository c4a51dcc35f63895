"""The report's numbers, from result files made here, against the same numbers worked out by hand."""

import json
import re
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from evaluation.babilong.tasks import TASKS
from evaluation.intervals import wilson
from evaluation.report import babilong, curves, explicit, mmlu
from evaluation.report.page import sections, write_report
from evaluation.report.parts import Cell, Group, Score, Section, Table, mean
from evaluation.report.sources import evaluated, load_runs, published
from evaluation.results import ModelFacts, Results, Row, share_row
from tests.pictures import inked
from training.config import dump_yaml, load_config
from training.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]

FACTS = {"parameters": 1000, "hidden_size": 8, "num_layers": 2, "segment_length": 4, "vocab_size": 9, "memory_on": True}
BOOK = published()


def results(run: str, rows: list[Row], kind: str = "lm2-time", **fields) -> Results:
    about = {
        "checkpoint": f"runs/{run}/checkpoints/step-00000001",
        "model": ModelFacts(name=run, kind=kind, **FACTS),
        "tokens": 5000,
        "phase": "memory",
        "seed": 0,
        "device": "a machine",
        "date": "2026-01-01",
        "command": "python launchers/evaluate.py",
    }
    return Results(run=run, rows=rows, **about | fields)


def cells(shares: dict[str, list[int]], samples: int = 100, **fields) -> list[Row]:
    """length -> right answers of qa1, qa2, …"""
    return [
        share_row(
            right, samples, task=f"babilong/qa{n}", length=length, **{"scorer": "corrected", "mode": "prompt"} | fields
        )
        for length, row in shares.items()
        for n, right in enumerate(row, 1)
    ]


def saved(folder: Path, *all_results: Results) -> list[Path]:
    paths = [folder / f"{r.run}-{n}.json" for n, r in enumerate(all_results)]
    for path, one in zip(paths, all_results, strict=True):
        one.save(path)
    return paths


def table(section: Section, begins: str) -> Table:
    return next(t for t in section.tables if t.caption.startswith(begins))


def group(found: Table, title: str) -> Group:
    return next(g for g in found.groups if g.title.startswith(title))


def row_of(found: Group, name: str) -> list[Cell]:
    return list(next(row.cells for row in found.rows if row.name == name))


def babilong_of(tmp_path: Path, *all_results: Results, scorer: str = "corrected") -> Section:
    return babilong.section(load_runs(saved(tmp_path, *all_results)), BOOK, scorer)


def test_published_tables_are_whole_and_their_errors_are_as_noted():
    lines = {line.name: line for line in babilong.published_lines(BOOK["lm2_paper"]["babilong"])}
    assert {name: len(line.cells) for name, line in lines.items()} == {
        "Llama-3.2-3.2B": 1, "Llama-3.2-1.2B": 8, "Llama-3.2-1.2B + RAG": 8,
        "vanilla Llama 1.7B": 9, "RMT 1.7B": 9, "LM2 1.7B": 9,
    }  # fmt: skip
    assert all(len(row) == 10 for line in lines.values() for row in line.cells.values())

    def average(name: str, lengths: list[str]) -> float:
        values = [s.value for n in lengths for s in lines[name].cells[n].values()]
        return sum(values) / len(values)

    short, long = ["0k", "1k", "2k", "4k"], ["8k", "16k", "32k", "64k"]
    assert round(average("vanilla Llama 1.7B", long), 1) == 33.2
    assert round(average("RMT 1.7B", ["4k"]), 1) == 38.4
    lm2, rmt, llama = (average(name, short) for name in ("LM2 1.7B", "RMT 1.7B", "Llama-3.2-1.2B"))
    assert (round(100 * (lm2 / rmt - 1), 1), round(100 * (lm2 / llama - 1), 1)) == (36.6, 88.0)
    for model in BOOK["lm2_paper"]["mmlu"]["models"]:  # the published average is the mean of the eight columns
        assert sum(model["cells"]) / 8 == pytest.approx(model["average"], abs=0.05)


def test_table_1_forms_both_means(tmp_path):
    ours = {
        n: [10 * i + j for j in range(10)] for i, n in enumerate(["0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k"])
    }
    ours["128k"] = [0] * 10
    table1 = table(babilong_of(tmp_path, results("mine", cells(ours))), "Table 1")
    assert [g.title[:3] for g in table1.groups] == ["0K", "1K", "2K", "4K", "≥ 8", "≥ 8"]
    printed, said = table1.groups[-2:]
    # qa1 has 40, 50, 60, 70 and 0 of 100
    assert row_of(printed, "mine")[0].text == "55.0" and row_of(said, "mine")[0].text == "44.0"
    assert row_of(printed, "mine")[-1].text == "59.5" and row_of(said, "mine")[-1].text == "47.6"
    # LM2, qa1: 34, 23, 19, 19 and 15
    assert row_of(printed, "LM2 1.7B")[0].text == "23.8" and row_of(said, "LM2 1.7B")[0].text == "22.0"
    llama = next(row for row in said.rows if row.name == "Llama-3.2-1.2B")
    assert llama.note == "8K, 16K, 32K, 64K only" and llama.cells[0].text == "19.0"
    assert row_of(group(table1, "4K"), "mine")[2] == Cell("32", "24–42")


def test_table_3_has_every_length_in_order_also_beyond_the_published(tmp_path):
    section = babilong_of(tmp_path, results("mine", cells({"1M": [1] * 10, "2k": [50] * 10})))
    table3 = table(section, "Table 3")
    assert [g.title for g in table3.groups] == ["0K", "1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K", "1M"]
    assert [row.name for row in group(table3, "1M").rows] == ["mine"]
    by_name = {row.name: row for row in group(table3, "2K").rows}
    assert by_name["LM2 1.7B"].published and not by_name["mine"].published
    assert " ".join(c.text for c in by_name["LM2 1.7B"].cells) == "58 43 64 43 87 73 93 53 75 69 65.8"


def test_published_numbers_are_in_no_mean_of_ours_nor_ours_in_theirs(tmp_path):
    empty = babilong.section([], BOOK, "corrected")
    full = babilong_of(tmp_path, results("mine", cells({n: [100] * 10 for n in ("0k", "8k")})))
    for before, after in zip(empty.tables, full.tables, strict=False):
        theirs = [
            [(g.title, r.name, r.cells) for g in t.groups for r in g.rows if r.published] for t in (before, after)
        ]
        assert theirs[0] == theirs[1]
    assert row_of(group(table(full, "Table 1"), "0K"), "mine")[-1].text == "100.0"


def test_intervals_of_cells_and_of_means(tmp_path):
    section = babilong_of(tmp_path, results("mine", cells({"8k": [3] + [0] * 9, "16k": [9] + [0] * 9}, samples=10)))
    low3, high3 = wilson(3, 10)
    low9, high9 = wilson(9, 10)
    down = 100 * sqrt((0.3 - low3) ** 2 + (0.9 - low9) ** 2) / 2
    up = 100 * sqrt((high3 - 0.3) ** 2 + (high9 - 0.9) ** 2) / 2
    found = row_of(group(table(section, "Table 1"), "≥ 8K as the paper"), "mine")[0]
    assert found == Cell("60.0", f"{60 - down:.1f}–{60 + up:.1f}")
    assert mean([]) is None
    assert mean([Score(10.0), Score(20.0, 10, 30)]) == Score(15.0, mean=True), "no interval from half of one"


def test_the_chosen_scorer_is_shown_and_all_are_compared(tmp_path):
    rows = [
        row for s, n in (("official", 10), ("exact", 20), ("corrected", 40)) for row in cells({"0k": [n, n]}, scorer=s)
    ]
    one = results("mine", rows)
    for scorer, value in (("official", "10"), ("exact", "20"), ("corrected", "40")):
        section = babilong_of(tmp_path, one, scorer=scorer)
        shown = group(table(section, "Table 1"), "0K")
        assert row_of(shown, "mine")[0].text == value
        assert next(r.note for r in shown.rows if r.name == "mine") == "mean of 2 tasks"
        assert [c.text for c in row_of(table(section, "Our models by scorer").groups[0], "mine")] == [
            "10.0",
            "20.0",
            "40.0",
            "2",
        ]


def test_modes_and_kinds_are_lines_of_their_own_and_the_newest_cell_counts(tmp_path):
    old = results("mine", cells({"0k": [1] * 10}), date="2026-01-01")
    new = results("mine", cells({"0k": [2] * 10}), date="2026-01-02")
    tuned = results("mine", cells({"0k": [90] * 10}, mode="finetuned"))
    rag = results("mine", cells({"0k": [5] * 10}), kind="none+rag")
    folder = tmp_path / "mine"
    for n, one in enumerate((new, old, tuned, rag)):
        one.save(folder / "evaluation" / f"{n}.json")
    run = _run_folder(folder)
    lines = {line.name: line for line in babilong.our_lines(load_runs([run]), "corrected")}
    values = {name: line.cells["0k"]["qa1"].value for name, line in lines.items()}
    assert values == {"mine · prompt": 2, "mine · finetuned": 90, "mine · rag · prompt": 5}
    assert lines["mine · finetuned"].badges == ("finetuned",)


def _run_folder(folder: Path, *overrides: str) -> Path:
    """A run as `launchers/pretrain.py` leaves it, shortly after its begin."""

    quickstart = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(load_config(quickstart, overrides)))
    lines = [
        {
            "step": s,
            "tokens": 1000 * s,
            "phase": "memory",
            "loss": 5 / s,
            "grad_norm": 1,
            "lr": 1,
            "tokens_per_second": 10 * s,
        }
        for s in range(1, 6)
    ]
    lines += [{"step": s, "tokens": 1000 * s, "phase": "memory", "valid_loss": 4 / s} for s in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_simulated_facts_are_marked(tmp_path):
    simulated = results("sim", cells({"0k": [50] * 10}), data={"babilong": {"facts": "simulator"}})
    real = results("real", cells({"0k": [50] * 10}), data={"babilong": {"facts": "bAbI files"}})
    section = babilong_of(tmp_path, simulated, real)
    badges = {row.name: row.badges for row in group(table(section, "Table 1"), "0K").rows if not row.published}
    assert badges == {"sim": ("simulated facts",), "real": ()}
    assert any(text.startswith("SIMULATED") for text in section.paragraphs)
    assert not any(text.startswith("SIMULATED") for text in babilong_of(tmp_path, real).paragraphs)


def test_finetuned_models_stand_beside_finetuned_ones_only(tmp_path):
    tuned = results("mine", cells({"64k": [90, 80, 70, 60, 50, 0, 0, 0, 0, 0], "4k": [100] * 4}, mode="finetuned"))
    found = table(babilong_of(tmp_path, tuned), "Fine-tuned")
    assert found.head[1:] == ["4K", "64K", "128K", "500K", "1M", "10M"]
    rows = {row.name: [c.text for c in row.cells] for row in found.groups[0].rows}
    assert rows["mine"] == ["–", "70.0", "–", "–", "–", "–"], "of 4K only four tasks are there"
    assert rows["ARMT 145M"] == ["–", "97.9", "96.9", "95.3", "93.4", "76.6"]
    prompted = babilong_of(tmp_path, results("mine", cells({"64k": [50] * 10})))
    assert not [t for t in prompted.tables if t.caption.startswith("Fine-tuned")]


def test_radar_compares_the_same_tasks_and_lengths(tmp_path):
    line = babilong.Line("mine", {n: {t: Score(10.0 * k) for k, t in enumerate(TASKS)} for n in ("0k", "4k")})
    by = babilong.capabilities(line, list(TASKS), ["0k", "4k"])
    assert by == {
        "single-step reasoning": 0, "multi-step reasoning": 15, "relation tracking": 35,
        "basic queries": 60, "negation and uncertainty": 85,
    }  # fmt: skip
    section = babilong_of(tmp_path, results("mine", cells({"0k": [50] * 10, "2k": [50] * 10, "1M": [1] * 10})))
    radar = next(p for p in section.pictures if p.file == "figure-3")
    assert radar.caption.endswith("at 0K, 2K; dashed: published")
    labels = [text.get_text() for text in radar.figure.axes[0].get_legend().get_texts()]
    assert "LM2 1.7B (published)" in labels and "mine" in labels and "Llama-3.2-1.2B + RAG (published)" not in labels


def test_table_2(tmp_path):
    subjects = [
        ("abstract_algebra", "STEM", "General", 10, 40),
        ("college_physics", "STEM", "College", 30, 60),
        ("philosophy", "Humanities", "General", 25, 100),
        ("professional_psychology", "Social Sciences", "Professional", 12, 20),
        ("high_school_geography", "Social Sciences", "High School", 5, 20),
        ("virology", "Others", "General", 20, 50),
    ]
    rows = [
        share_row(right, n, task=f"mmlu/{name}", category=category, level=level, shots=5, scorer="likelihood")
        for name, category, level, right, n in subjects
    ]
    section = mmlu.section(load_runs(saved(tmp_path, results("mine", rows))), BOOK)
    (found,) = section.tables
    mine = dict(zip(found.head[1:], row_of(found.groups[0], "mine"), strict=True))
    right = {"STEM": (40, 100), "Humanities": (25, 100), "Social Sciences": (17, 40), "Others": (20, 50)}
    right |= {"High School": (5, 20), "College": (30, 60), "Professional": (12, 20), "General": (55, 190)}
    assert {name: mine[name].text for name in right} == {n: f"{100 * a / b:.1f}" for n, (a, b) in right.items()}
    assert mine["mean of the eight"] == Cell(f"{sum(100 * a / b for a, b in right.values()) / 8:.1f}")
    low, high = wilson(102, 290)
    assert mine["all questions"] == Cell(f"{100 * 102 / 290:.1f}", f"{100 * low:.1f}–{100 * high:.1f}")
    assert [c.text for c in row_of(found.groups[0], "LM2 1.7B")][-2:] == ["29.4", "–"]
    assert next(r.note for r in found.groups[0].rows if r.name == "mine") == "290 questions of 6 of 57 subjects"


def test_explicit_memory_is_shown_when_there_are_rows(tmp_path):
    assert explicit.section(load_runs(saved(tmp_path, results("mine", cells({"0k": [1]})))), BOOK) is None
    rows = [
        share_row(right, 10, task=f"nq/{mode}", scorer=scorer)
        for scorer, shares in (("exact", (1, 6, 3)), ("contains", (2, 9, 8)))
        for mode, right in zip(explicit.MODES, shares, strict=True)
    ]
    rows += [
        Row(task=f"perplexity/{name}", value=value, samples=4, scorer="nats per token")
        for name, value in (("without memory", 3.25), ("explicit memory", 3.0))
    ]
    rows += [Row(task="perplexity", length="4k", value=2.0, samples=4, scorer="nats per token")]
    runs = load_runs(saved(tmp_path, results("mine", rows)))
    answers, losses, theirs = explicit.section(runs, BOOK).tables
    assert answers.caption == "nq: accuracy" and list(answers.head[1:]) == ["scorer", *explicit.MODES]
    assert [[c.text for c in row.cells] for row in answers.groups[0].rows] == [
        ["exact", "10", "60", "30"],
        ["contains", "20", "90", "80"],
    ]
    assert answers.groups[0].rows[0].cells[1].small == "2–40"
    assert row_of(losses.groups[0], "mine") == [Cell("25.79", "3.250"), Cell("20.09", "3.000"), Cell("-0.250")]
    assert all(row.published for row in theirs.groups[0].rows)
    own = [replace(run, config=load_config(ROOT / "configs" / "memory3_2.4b.yaml")) for run in runs]
    costs = next(t for t in explicit.section(own, BOOK).tables if t.caption == "What knowing a text costs")
    assert [c.text for c in costs.groups[0].rows[0].cells] == [
        "2.24e+03",
        "308 + 0.14 n",
        "624 n",
        "0.494 to 13,388 uses",  # published: 13,400
    ]  # the published account, in GFLOP
    assert curves.blocks(own[0]).endswith("explicit")
    by_length = curves.position_section(runs).tables[0]
    assert by_length.head == ["model", "4K"] and row_of(by_length.groups[0], "mine") == [Cell("7.39", "2.000")]


def test_runs_with_curves_and_what_is_missing(tmp_path):
    first = _run_folder(tmp_path / "first", "model.memory.layers=1")
    every = _run_folder(tmp_path / "every")
    runs = load_runs([first, every])
    found = {section.title: section for section in sections(runs, "corrected")}
    figure5 = found["Which blocks need a memory"]
    assert [p.file for p in figure5.pictures] == ["figure-5-1"] and not figure5.missing
    curves = figure5.pictures[0].figure.axes[0].get_lines()
    assert {line.get_label() for line in curves} == {"memory: lm2-time, first 1 of 4", "memory: lm2-time, all 4"}
    assert curves[0].get_xydata().ravel().tolist() == pytest.approx([2000, 7.38905609893, 4000, 2.71828182846])
    speed = found["Speed and memory"].tables[0].groups[0].rows[0]
    assert speed.cells[2].text == "30", "the median of 10, 20, 30, 40, 50"
    missing = [one for section in found.values() for one in section.missing]
    assert all("first" in one.what and "every" in one.what for one in missing)
    commands = [one.command for one in missing]
    assert len(commands) == 4 and all(str(first) in command for command in commands)
    alone = {section.title: section for section in sections(load_runs([every]), "corrected")}
    assert "launchers/ablation.py" in alone["Which blocks need a memory"].missing[0].command


def test_the_page_needs_nothing_else_and_says_what_is_not_ours(tmp_path):
    wild = results("<b>mine</b>|x", cells({"0k": [50] * 10}))
    wild.save(tmp_path / "r.json")
    html_path, md_path = write_report(
        [tmp_path / "r.json", _run_folder(tmp_path / "run")], tmp_path / "page", "corrected", "cmd"
    )
    html, markdown = html_path.read_text(), md_path.read_text()
    assert "<b>mine" not in html and "&lt;b&gt;mine" in html
    assert "<script" not in html and not re.search(r'(?:src|href)="(?!#|data:)', html.replace("xlink:href", "href"))
    assert not re.search(r"url\((?!#)|@import", html)
    for row in re.findall(r'<tr class="(\w+)"><th class="model">(.*?)</tr>', html, flags=re.DOTALL):
        assert (row[0] == "published") == ("1.7B" in row[1] or "Llama-3.2" in row[1])
    assert html.count("Table 1") and html.count("Table 2") and html.count("Table 3")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert pictures and all(inked(tmp_path / "page" / name) > 0.02 for name in pictures)
    widths = {
        line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|") and "qa1" in line
    }
    assert len(widths) == 1
    body = [line for line in markdown.splitlines() if line.startswith("| *LM2 1.7B*")]
    assert body and "| <b>mine</b>\\|x |" in markdown


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    paths = [_run_folder(tmp_path / "a" / "mine"), _run_folder(tmp_path / "b" / "mine")]
    assert [run.name for run in load_runs(paths)] == [str(path) for path in paths]


def test_bad_input_is_named_all_at_once(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_runs([tmp_path / "x.json", tmp_path / "folder", tmp_path / "nothing"])
    text = str(caught.value)
    assert all(name in text for name in ("x.json", "folder", "nothing")) and "launchers/evaluate.py" in text
    assert not evaluated([], "babilong/.*")
