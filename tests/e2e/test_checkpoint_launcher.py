"""`launchers/checkpoint.py` on checkpoints that two ranks wrote, and a run that a signal stopped."""

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.attempts import Site, attempt, difference, steps_so_far, through
from tests.e2e.commands import ROOT, reproducible, run_warm
from training.checkpoint.trained_model import load_model

CHECKPOINT = ROOT / "launchers" / "checkpoint.py"
STEPS = 12


@pytest.fixture(scope="module")
def site(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Run `two` has checkpoints at 4 and at 5, before the memory joins, and none after."""
    made = Site.make(tmp_path_factory.mktemp("checkpoints"), prepared_data, STEPS)
    assert through(made, "two", "training.stop_after_steps=5").codes == [75, 75]
    return made


def step(site: Site, number: int) -> Path:
    return site.run("two") / "checkpoints" / f"step-{number:08d}"


def command(site: Site, *arguments: str, code: int = 0) -> str:
    done = run_warm(CHECKPOINT, *arguments, cwd=site.folder)
    assert done.code == code, done.err
    return done.out if code == 0 else done.err


def test_list_and_verify(site: Site, tmp_path: Path) -> None:
    lines = command(site, "list", "runs/two").splitlines()
    assert [line.split()[0] for line in lines] == ["step-00000004", "step-00000005"]
    assert "tokens 1,280" in lines[1]
    assert [line.endswith("<- latest") for line in lines] == [False, True]
    assert command(site, "verify", "runs/two").count("whole, 4 files") == 2

    damaged = tmp_path / "step-00000005"
    shutil.copytree(step(site, 5), damaged)
    shard = damaged / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "__1_0.distcp: its checksum is" in command(site, "verify", str(damaged), code=1)
    command(site, "copy", str(damaged), str(tmp_path / "copy"), code=1)
    assert not (tmp_path / "copy").exists()


def test_copies_are_whole_and_overwrite_nothing(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "backup" / "step-00000005"
    command(site, "copy", "runs/two", str(target))
    assert command(site, "verify", str(target)).count("whole, 4 files") == 1
    assert "exists already" in command(site, "copy", "runs/two", str(target), code=2)


def test_the_average_starts_another_run(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "soup"
    command(site, "average", str(target), *(str(step(site, number)) for number in (4, 5)))
    paths = (step(site, 4), step(site, 5), target)
    first, second, mean = (dict(load_model(path).net.named_parameters()) for path in paths)
    for name, value in mean.items():
        assert torch.allclose(value, (first[name] + second[name]) / 2, atol=1e-7), name
    begun = through(site, "begun", f"phases.0.init_from=checkpoint:{target}", "training.stop_after_steps=1", ranks=1)
    assert begun.codes == [75], begun.text()


def test_a_run_goes_on_when_what_its_phase_began_from_is_gone(site: Site, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(step(site, 5), origin)
    start = f"phases.0.init_from=checkpoint:{origin}"
    assert through(site, "child", start, "training.stop_after_steps=2", ranks=1).codes == [75]
    shutil.rmtree(origin)
    again = through(site, "child", start, "training.stop_after_steps=3", ranks=1)
    assert again.codes == [75], again.text()
    refused = through(site, "late", start, ranks=1)
    assert refused.codes == [2]
    assert str(origin) in refused.text()


def test_bad_input_is_refused(site: Site, tmp_path: Path) -> None:
    assert "runs/nowhere" in command(site, "list", "runs/nowhere", code=2)
    assert "no checkpoint" in command(site, "copy", "runs/nowhere", str(tmp_path / "x"), code=2)
    assert not (tmp_path / "x").exists()


def test_sigterm_to_one_rank_saves_on_all_and_the_rest_is_the_same_by_the_bit(site: Site) -> None:
    whole = through(site, "whole")
    assert whole.codes == [0, 0], whole.text()
    with attempt(site, "stopped") as running:
        while steps_so_far(running.run_folder) < 3 and not running.over:
            time.sleep(0.001)
        running.signal(1, signal.SIGTERM)
        assert running.follow() == [75, 75], running.text()
    assert "by SIGTERM, saved" in running.text()
    assert 3 <= steps_so_far(site.run("stopped")) < STEPS
    assert through(site, "stopped").codes == [0, 0]
    assert reproducible(site.run("stopped")) == reproducible(site.run("whole"))
    assert difference(site.run("stopped"), site.run("whole")) == ""
