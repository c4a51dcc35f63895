"""`deepspeed --hostfile` over two machines, as DeepSpeed's users start it: pdsh, ssh, no Slurm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import DEEPSPEED, PRETRAIN, environment, losses
from tests.slurm.conftest import Site

STEPS_HERE = 10


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed (Debian: tests/slurm/install.sh)")
@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="sshd is not installed (tests/slurm/install.sh)")
def test_deepspeed_over_a_hostfile_gives_the_bits_of_slurm(site: Site, uninterrupted: Path) -> None:
    site.box.start_sshd()
    (site.folder / "hostfile").write_text("n1 slots=2\nn2 slots=2\n")
    (site.folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    launcher = [sys.executable, str(DEEPSPEED), "--hostfile", "hostfile", "--master_port", "29611", str(PRETRAIN)]
    options = ["--config", "run.yaml", "run.name=hostfile", "parallel.tensor=2", "parallel.pipeline=2"]
    stop = [f"training.stop_after_steps={STEPS_HERE}", "tracking.enabled=false"]
    env = environment({"PATH": f"{site.box.root / 'bin'}:{os.environ['PATH']}"})
    # from n1, as people do: both names mean something there, and both machines are reached by ssh
    command = site.box.inside("n1", "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(site.folder))
    done = subprocess.run([*command, *launcher, *options, *stop], env=env, capture_output=True, text=True, timeout=300)
    found = losses(site.run("hostfile"))
    assert found.keys() == set(range(1, STEPS_HERE + 1)), done.stderr[-3000:]
    assert "saved; run the same command again" in done.stdout
    reference = losses(uninterrupted)
    assert found == {step: reference[step] for step in found}
    assert (site.run("hostfile") / "log" / "rank-3.log").exists()
