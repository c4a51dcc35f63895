"""What a run decides about bad steps, signals and hanging ranks, without a run."""

import errno
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from training.checkpoint.remote import local_copy
from training.config import FaultConfig, read_yaml
from training.errors import ConfigError, TrainingError
from training.faults.anomalies import AnomalyDetector, LossGuard, read_skipped, write_skipped
from training.faults.postmortem import is_full_disk, is_lost_peer, is_out_of_memory
from training.faults.stragglers import slow_ranks
from training.faults.watchdog import Beat, Watchdog


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A process group of one, as a run on one rank has it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def detector(**settings: float) -> AnomalyDetector:
    return AnomalyDetector(FaultConfig.model_validate(settings))


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_steps_that_are_not_finite_are_counted_among_a_hundred(bad: tuple[float, float]) -> None:
    found = detector(nonfinite_steps=2)
    for step in (1, 50, 101):
        assert not found.decide(step, *bad, stop=False).finite
        assert found.decide(step + 1, 2.0, 1.0, stop=False).finite
    assert not found.too_many_bad  # the first is a hundred steps ago
    found.decide(103, *bad, stop=False)
    assert found.too_many_bad


def test_a_spike_is_above_the_usual_loss_and_only_after_enough_steps() -> None:
    found = detector(spike_factor=2, spike_skips=3, rollbacks=1)
    assert not found.decide(1, 100.0, 1.0, stop=False).spike  # nothing is usual yet
    for step in range(2, 20):
        assert not found.decide(step, 3.0, 1.0, stop=False).spike
    assert not found.decide(20, 5.9, 1.0, stop=False).spike
    assert found.decide(21, 6.1, 1.0, stop=False).spike
    assert found.roll_back(21, back_to=19) == [20, 21]  # no step that the checkpoint has already
    with pytest.raises(TrainingError, match="spiked again after 1 returns"):
        found.roll_back(30, back_to=19)
    assert not detector().decide(99, 1e9, 1.0, stop=False).spike  # off unless it is asked for


def test_passed_over_steps_are_remembered(tmp_path: Path) -> None:
    assert read_skipped(tmp_path) == []
    write_skipped(tmp_path, [9, 8])
    assert read_skipped(tmp_path) == [8, 9]
    (tmp_path / "skipped.json").write_text("{")
    with pytest.raises(TrainingError, match=r"skipped\.json"):
        read_skipped(tmp_path)


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1.0])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(weight: float) -> None:
    guard, x = LossGuard(), torch.ones((), requires_grad=True)
    guard.begin()
    guard(x * 2).backward()
    assert float(x.grad) == 2.0  # type: ignore[arg-type]
    x.grad = None
    guard(x + weight).backward()  # its own gradient would be 1
    assert math.isfinite(float(x.grad)) == math.isfinite(weight)  # type: ignore[arg-type]
    assert guard.bad() == ([] if math.isfinite(weight) else [1])


def test_errors_are_told_apart() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert is_lost_peer(RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:1] Connection closed"))
    assert not is_lost_peer(ValueError("gloo"))
    assert is_full_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_full_disk(FileNotFoundError(errno.ENOENT, "No such file or directory"))


def test_a_slow_rank_is_compared_with_the_others_of_its_stage() -> None:
    assert slow_ranks([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1], 2.0) == []  # stages differ by nature
    assert slow_ranks([0.1, 0.35], [0, 0], 2.0) == [(1, pytest.approx(3.5))]
    assert slow_ranks([0.1, 0.11, 0.09, 0.25], [0, 0, 0, 0], 2.0) == [(3, pytest.approx(2.5))]
    assert slow_ranks([0.1], [0], 2.0) == []
    assert slow_ranks([1e-5, 1e-3], [0, 0], 2.0) == []  # nothing that a clock can tell


HANGING = """
import sys, threading
from pathlib import Path
from training.faults.watchdog import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0, 1, 2.0)
watchdog.beat(7, "warmup", "step")
def wait_for_ever():
    threading.Event().wait()
wait_for_ever()
"""


def test_a_hanging_process_is_named_and_ends(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGING, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Hanging: rank 0, step 7, phase warmup, step, at " in done.stderr
    assert "wait_for_ever" in (tmp_path / "log" / "stacks-rank-0.txt").read_text()


def test_who_waits_for_its_device_is_not_who_hangs(tmp_path: Path) -> None:
    """On a GPU the wait for other ranks is the next number that is read, in no collective's frame."""
    log = tmp_path / "log"
    log.mkdir()
    other = Beat(1, 7, "warmup", "data", time.time(), time.time(), where="data.py:3 read", host="n2")
    (log / "heartbeat-rank-1.json").write_text(json.dumps(asdict(other)))
    waiting = HANGING.replace("0, 1, 2.0", "0, 2, 2.0, busy=lambda: True")
    done = subprocess.run([sys.executable, "-c", waiting, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "Hanging: rank 1, step 7, phase warmup, data" in done.stderr
    assert "rank 0" not in done.stderr
    assert "1 of 2 ranks wait for others" in done.stderr


def test_a_hanging_process_ends_also_on_a_full_disk(tmp_path: Path) -> None:
    code = HANGING.replace("watchdog.beat", FULL_DISK + "watchdog.beat")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Hanging: rank 0, step 7, phase warmup, step, at " in done.stderr


FULL_DISK = """
def full(*_, **__):
    raise OSError(28, "No space left on device")
Path.write_text = full
watchdog._stacks = open("/dev/full", "w")
"""


def test_a_suspended_process_does_not_hang(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", SUSPENDED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "watched\n"
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=4)  # twice as long as it may hang
    child.send_signal(signal.SIGCONT)
    assert child.wait(timeout=30) == 0


SUSPENDED = """
import sys, time
from pathlib import Path
from training.faults.watchdog import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0, 1, 2.0)
print("watched", flush=True)
end = time.process_time() + 0.5
while time.process_time() < end:
    watchdog.beat(1, "warmup", "step")
watchdog.close()
"""


def test_a_watchdog_that_was_not_needed_leaves_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    watchdog = Watchdog(tmp_path, 0, 1, 600.0)
    watchdog.beat(1, "warmup", "step")
    watchdog.close()
    assert not list((tmp_path / "log").iterdir())
    assert threading.active_count() == threads


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:pathlib.Path", "!custom"])
def test_a_configuration_that_would_run_code_is_refused(tmp_path: Path, tag: str) -> None:
    target = tmp_path / "owned"
    (tmp_path / "run.yaml").write_text(f"run: {tag} ['touch {target}']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "run.yaml")
    assert not target.exists()


class TestRemote:
    """A checkpoint at an address; `file://` is one that every fsspec has."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTRAIN_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        from tests.unit.training.test_checkpoint_files import make

        return make(tmp_path / "bucket", 10)

    def test_is_fetched_once_and_again_when_it_changed(self, elsewhere: Path) -> None:
        from tests.unit.training.test_checkpoint_files import entries
        from training.checkpoint.manifest import verify, write_manifest

        copy = local_copy(f"file://{elsewhere}", "init_from")
        assert copy != elsewhere
        assert verify(copy)
        before = (copy / "state.json").stat().st_mtime_ns
        assert local_copy(f"file://{elsewhere}", "init_from") == copy
        assert (copy / "state.json").stat().st_mtime_ns == before
        (elsewhere / "state.json").write_text('{"step": 11}')
        write_manifest(elsewhere, entries(elsewhere))
        assert (local_copy(f"file://{elsewhere}/", "init_from") / "state.json").read_text() == '{"step": 11}'

    def test_damaged_or_absent_is_refused(self, elsewhere: Path) -> None:
        shard = elsewhere / "__0_0.distcp"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(ConfigError, match=r"phases\.0\.init_from: file://.*distcp: has"):
            local_copy(f"file://{elsewhere}", "phases.0.init_from")
        with pytest.raises(ConfigError, match=r"cannot be fetched.*FileNotFoundError"):
            local_copy(f"file://{elsewhere}-nowhere", "init_from")
        with pytest.raises(ConfigError, match="cannot be fetched"):
            local_copy("nosuchscheme://x/step-00000001", "init_from")

    def test_a_folder_stays_where_it_is(self, elsewhere: Path) -> None:
        assert local_copy(str(elsewhere), "init_from") == elsewhere
