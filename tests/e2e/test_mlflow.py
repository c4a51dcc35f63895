"""Trainings of two ranks, recorded by a real MLflow server with basic auth, seen through its REST API and its page."""

import contextlib
import itertools
import json
import shutil
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.attempts import LENGTH, SAMPLES, Attempt, Site, attempt, steps_so_far, through
from tests.e2e.commands import ROOT, losses, metrics, run_warm, wait_until
from tests.e2e.injected import Scaled
from tests.e2e.mlflow_server import (
    CREDENTIALS,
    PASSWORD,
    USER,
    MlflowServer,
    mlflow_server,
    postgres,
    postgres_programs,
)
from tests.pictures import inked

STEPS = 24
SYNC, STATUS, EXPORT = (ROOT / "launchers" / name for name in ("mlflow_sync.py", "status.py", "export.py"))
HELD = 1.5  # seconds; a step that waited for a dead server would take longer: one attempt of MLflow's client does


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db") as running:
            yield running
        return
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg2", reason="MLflow needs psycopg2 to speak to PostgreSQL")
    with postgres(programs) as address, mlflow_server(folder, address) as running:
        yield running


@pytest.fixture(scope="module")
def site(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("tracked"), prepared_data, STEPS)


def recording(server: MlflowServer, *overrides: str) -> list[str]:
    return ["tracking.enabled=true", f"tracking.uri={server.uri}", "tracking.system_seconds=1", *overrides]


def only_run(server: MlflowServer, name: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """(info, params, tags) of the one run of that name."""
    (found,) = server.runs(name)
    params, tags = ({item["key"]: item["value"] for item in found["data"][kind]} for kind in ("params", "tags"))
    return found["info"], params, tags


def values(server: MlflowServer, run_id: str, key: str) -> dict[int, float]:
    """Value by step; a step that is there twice is an error."""
    points = server.history(run_id, key)
    found = {int(point["step"]): float(point["value"]) for point in points}
    assert len(found) == len(points), [point["step"] for point in points]
    return found


def name_of(server: MlflowServer, what: str) -> str:
    return f"{what}-{'sqlite' if server.backend.startswith('sqlite') else 'postgresql'}"


@pytest.fixture(scope="module")
def survivor(server: MlflowServer, site: Site) -> Path:
    """The folder of a run that had a rank killed with -9, was stopped by SIGTERM, and then came to its end."""
    name = name_of(server, "survivor")
    with attempt(site, name, *recording(server)) as first:
        wait_until(lambda: steps_so_far(first.run_folder) >= 7 or first.over, 120, "step 7")
        first.signal(0, signal.SIGKILL)
        assert -signal.SIGKILL in first.follow()
    (info, _, _) = only_run(server, name)
    assert info["status"] == "RUNNING"  # nobody was left to say otherwise
    (site.run(name) / "submit.sbatch").write_text("#!/bin/bash\n")
    with attempt(site, name, *recording(server)) as second:
        wait_until(lambda: steps_so_far(second.run_folder) >= 11 or second.over, 120, "step 11")
        for rank in (0, 1):
            second.signal(rank, signal.SIGTERM)
        assert second.follow() == [75, 75], second.text()
    (info, _, tags) = only_run(server, name)
    assert info["status"] == "KILLED"  # saved to go on is not finished
    assert "by SIGTERM, saved; run the same command again" in tags["state"]
    third = through(site, name, *recording(server))
    assert third.codes == [0, 0], third.text()
    return third.run_folder


@pytest.mark.slow
def test_one_run_has_every_step_of_all_lives_once(server: MlflowServer, survivor: Path) -> None:
    info, _, tags = only_run(server, survivor.name)
    assert (info["status"], tags["state"]) == ("FINISHED", "finished")
    assert info["run_id"] == (survivor / "mlflow_run_id").read_text().strip()
    assert values(server, info["run_id"], "train/loss") == pytest.approx(losses(survivor))
    lines = {line["step"]: line for line in metrics(survivor) if "loss" in line}
    for key, field in {
        "train/tokens": "tokens",
        "optim/grad_norm": "grad_norm",
        "optim/lr": "lr",
        "data/wait": "data_wait",
    }.items():
        stored = values(server, info["run_id"], key)
        assert stored.keys() == set(range(1, STEPS + 1)), key
        if field != "data_wait":  # a clock's value of a step that was trained again
            assert stored == pytest.approx({step: line[field] for step, line in lines.items()}), key
    assert len(server.history(info["run_id"], "throughput/tokens_per_second")) == STEPS
    assert all(0 < value < 1 for value in values(server, info["run_id"], "throughput/goodput").values())
    gates = server.history(info["run_id"], "memory/gate_in")
    assert [int(point["step"]) for point in gates] == list(range(STEPS // 2 + 1, STEPS + 1))
    assert [int(point["step"]) for point in server.history(info["run_id"], "eval/valid_loss")] == [STEPS // 2, STEPS]
    assert server.history(info["run_id"], "system/cpu_utilization_percentage")


@pytest.mark.slow
def test_restarts_place_and_phases_are_tags_and_the_configuration_params(server: MlflowServer, survivor: Path) -> None:
    _, params, tags = only_run(server, survivor.name)
    assert tags["restarts"] == "2"
    assert "after step" in tags["restart.1"]
    assert "after step" in tags["restart.2"]
    assert {"host", "mlflow.user", "command"} <= tags.keys()
    assert tags["world_size"] == "2"
    assert tags["phase"] == "memory"
    assert (tags["phase.0.name"], tags["phase.0.memory"], tags["phase.0.steps"]) == ("warmup", "off", "1-12")
    assert (tags["phase.0.state"], tags["phase.1.state"]) == ("done", "done")
    if shutil.which("git") and (ROOT / ".git").exists():
        assert len(tags["git.commit"]) == 40
        assert tags["git.dirty"] in ("true", "false")
    assert params["model.memory.kind"] == "lm2"
    assert params["phases.1.tokens_per_step"] == str(LENGTH * SAMPLES)
    assert params["run.name"] == survivor.name


@pytest.mark.slow
def test_its_files_are_there_as_they_are(server: MlflowServer, survivor: Path) -> None:
    info, _, _ = only_run(server, survivor.name)
    wanted = {"config.yaml", "environment.txt", "loss.png", "metrics.jsonl", "rank-0.log", "submit.sbatch"}
    assert wanted <= set(server.artifacts(info["run_id"]))
    url = f"{server.uri}/get-artifact"
    for name in ("config.yaml", "metrics.jsonl", "loss.png"):
        found = requests.get(url, params={"run_id": info["run_id"], "path": name}, auth=(USER, PASSWORD), timeout=60)
        assert found.content == (survivor / name).read_bytes(), name
    assert "torch==" in (survivor / "environment.txt").read_text()


@pytest.mark.slow
def test_the_password_is_nowhere(server: MlflowServer, survivor: Path) -> None:
    assert PASSWORD not in json.dumps(server.runs(survivor.name))
    for path in survivor.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_without_the_right_password_a_run_does_not_begin(
    server: MlflowServer, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-long-password")
    started = through(site, "stranger", *recording(server))
    assert started.codes == [2, 2]
    assert "tracking.uri: cannot record the run in" in started.text()
    assert "another-long-password" not in started.text()
    assert not site.run("stranger").exists()


@pytest.mark.slow
def test_a_checkpoint_becomes_a_version_of_a_registered_model(
    server: MlflowServer, survivor: Path, tmp_path: Path
) -> None:
    name = name_of(server, "tiny")
    arguments = [str(survivor), str(tmp_path / "exported"), "--form", "llama", "--register", name]
    done = run_warm(EXPORT, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"registered: models:/{name}/1" in done.out
    version = server.get("model-versions/get", name=name, version="1")["model_version"]
    info, _, _ = only_run(server, survivor.name)
    assert version["run_id"] == info["run_id"]
    assert {tag["key"]: tag["value"] for tag in version["tags"]}["step"] == str(STEPS)
    folder = f"model/step-{STEPS:08}"
    exported = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert server.artifacts(info["run_id"], folder) == [f"{folder}/{name}" for name in exported]
    download = requests.get(
        f"{server.uri}/get-artifact",
        params={"run_id": info["run_id"], "path": f"{folder}/model.safetensors"},
        auth=(USER, PASSWORD),
        timeout=60,
    )
    assert download.content == (tmp_path / "exported" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_steps_undone_by_a_spike_are_told_apart(server: MlflowServer, site: Site) -> None:
    """Step 11 spikes, the run goes back to step 8, trains 9 and 10 again and passes 11 over."""
    name = name_of(server, "spiked")
    started = through(site, name, *recording(server, "faults.spike_factor=3"), fault=Scaled(-1, 11, 11, 50.0))
    assert started.codes == [0, 0], started.text()
    info, _, tags = only_run(server, name)
    curve, discarded = (values(server, info["run_id"], key) for key in ("train/loss", "train/discarded_loss"))
    assert curve.keys() == set(range(1, STEPS + 1)) - {11}
    assert discarded.keys() == {9, 10, 11}
    assert (discarded[9], discarded[10]) == (curve[9], curve[10])
    assert discarded[11] > 3 * curve[10]
    assert values(server, info["run_id"], "train/passed_over") == {11: 1.0}
    assert "back to step 8" in tags["rollback.step-11"]


@pytest.mark.slow
def test_a_run_that_fails_says_so_and_why(server: MlflowServer, site: Site) -> None:
    name = name_of(server, "failing")
    wrong = Scaled(-1, 5, 9)
    started = through(site, name, *recording(server, "faults.nonfinite_steps=2"), fault=wrong)
    assert started.codes == [1, 1], started.text()
    info, _, tags = only_run(server, name)
    assert info["status"] == "FAILED"
    assert "failed after step" in tags["state"]
    assert "not_finite.train/loss" in tags
    found = run_warm(STATUS, str(started.run_folder), "--json", cwd=site.folder)
    assert json.loads(found.out)["state"] == "failed"


@pytest.mark.slow
def test_a_run_that_was_never_recorded_is_sent_afterwards_and_only_once(server: MlflowServer, site: Site) -> None:
    name = name_of(server, "untracked")
    folder = through(site, name).run_folder
    for created in ("a new run", "run"):
        done = run_warm(SYNC, str(folder), "--uri", server.uri, cwd=site.folder)
        assert done.code == 0, done.err
        assert f": {created} " in done.out
    info, params, tags = only_run(server, name)
    assert info["status"] == "FINISHED"
    assert (params["model.hidden_size"], tags["sent"]) == ("16", "afterwards")
    assert [int(p["step"]) for p in server.history(info["run_id"], "train/loss")] == list(range(1, STEPS + 1))
    assert {"config.yaml", "loss.png"} <= set(server.artifacts(info["run_id"]))


@pytest.mark.slow
def test_a_server_that_dies_holds_up_no_step_and_misses_nothing(server: MlflowServer, site: Site) -> None:
    """Killed in the middle, started again hundreds of steps later; the run is told to stop once all has arrived."""
    name = name_of(server, "outage")
    long = [f"phases.0.tokens={200_000 * LENGTH * SAMPLES}", "checkpoint.every_steps=100000"]
    with attempt(site, name, *recording(server, *long)) as started:
        folder = started.run_folder
        reach(started, 100)
        server.kill()
        killed_at = steps_so_far(folder)
        reach(started, killed_at + 300)
        server.start()
        server.wait()
        back_at = steps_so_far(folder)
        spool = folder / "tracking-spool.jsonl"
        run_id = (folder / "mlflow_run_id").read_text().strip()
        wait_until(lambda: started.over or last_step(server, run_id) > back_at, 90, "the server has caught up")
        during = steps_so_far(folder)
        # it goes on as before, and what is new arrives too
        for rank in (0, 1):
            started.signal(rank, signal.SIGTERM)
        assert started.follow() == [75, 75], started.text()
    assert not spool.exists(), spool.read_text()[:500]
    info, _, _ = only_run(server, name)
    assert info["status"] == "KILLED"
    steps = max(losses(folder))
    assert during <= steps
    points = server.history(run_id, "train/loss")
    assert values(server, run_id, "train/loss") == pytest.approx(losses(folder))
    for key in ("train/tokens", "optim/lr", "optim/grad_norm", "throughput/tokens_per_second", "data/wait"):
        assert len(server.history(run_id, key)) == steps, key
    times = [int(point["timestamp"]) / 1e3 for point in points]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    before, outage = gaps[20 : killed_at - 1], gaps[killed_at - 1 : back_at]
    assert max(outage) < HELD, sorted(outage)[-5:]
    assert statistics.median(outage) < 3 * statistics.median(before)
    warned = (folder / "log" / "rank-0.log").read_text()
    assert warned.count("cannot be reached; training goes on") == 1
    assert warned.count("is back") == 1


def reach(started: Attempt, step: int) -> None:
    wait_until(lambda: started.over or steps_so_far(started.run_folder) >= step, 120, f"step {step}")
    assert not started.over, started.text()


def last_step(server: MlflowServer, run_id: str) -> int:
    found = server.get("runs/get", run_id=run_id)["run"]["data"].get("metrics", [])
    return max((int(metric["step"]) for metric in found if metric["key"] == "train/loss"), default=0)


@pytest.mark.slow
def test_a_run_that_ends_while_the_server_is_away_is_sent_by_a_sync(server: MlflowServer, site: Site) -> None:
    name = name_of(server, "late")
    assert through(site, name, *recording(server), "training.stop_after_steps=4").codes == [75, 75]
    server.kill()
    try:
        rest = through(site, name, *recording(server))
        assert rest.codes == [0, 0], rest.text()  # a run that goes on needs no server
        assert "launchers/mlflow_sync.py" in rest.text()
        assert run_warm(SYNC, str(rest.run_folder), cwd=site.folder).code == 2
    finally:
        server.start()
        server.wait()
    assert only_run(server, name)[0]["status"] == "KILLED"
    done = run_warm(SYNC, str(rest.run_folder), cwd=site.folder)
    assert done.code == 0, done.err
    info, _, tags = only_run(server, name)
    assert (info["status"], tags["restarts"], tags["state"]) == ("FINISHED", "1", "finished")
    assert [int(p["step"]) for p in server.history(info["run_id"], "train/loss")] == list(range(1, STEPS + 1))
    assert not (rest.run_folder / "tracking-spool.jsonl").exists()


@pytest.mark.browser
def test_the_page_of_a_run_shows_its_loss(server: MlflowServer, survivor: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    info, _, _ = only_run(server, survivor.name)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            context = browser.new_context(
                http_credentials={"username": USER, "password": PASSWORD}, viewport={"width": 1200, "height": 800}
            )
            page = context.new_page()
            search = page.get_by_placeholder("Search metric charts")
            for _ in range(3):  # on a busy machine the page may wait for ever for an answer that its server lost
                page.goto(f"{server.uri}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}/model-metrics")
                page.reload()
                with contextlib.suppress(sync_api.TimeoutError):
                    search.fill("train/loss", timeout=40_000)
                    break
            chart = page.locator(".js-plotly-plot")
            chart.locator("path.js-line").first.wait_for(timeout=60_000)
            drawn = chart.evaluate("plot => plot.data.map(trace => [Array.from(trace.x), Array.from(trace.y)])")
            shown = page.inner_text("body")
            page.screenshot(path=tmp_path / "loss.png")
        finally:
            browser.close()
    assert chart_of(losses(survivor)) in [[x, pytest.approx(y)] for x, y in drawn]
    assert survivor.name in shown
    assert inked(tmp_path / "loss.png") > 0.02


def chart_of(found: dict[int, float]) -> list[list[float]]:
    return [list(found), list(found.values())]
