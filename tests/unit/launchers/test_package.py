"""The installed package: what is in the wheel, and that its commands work where there is no checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from launchers import __main__ as memtrain
from launchers._cli import command_names, config_file, shipped_configs
from tests.distributed.spawn import free_port
from training.version import __version__

ROOT = Path(__file__).parents[3]
PACKAGES = ("configs", "data_prep", "evaluation", "launchers", "model", "training")
SHORT = (
    "run.name=short",
    "phases.0.tokens=16384",
    "phases.0.lr.warmup_tokens=8192",
    "phases.1.tokens=16384",
    "phases.1.lr.warmup_tokens=8192",
    "phases.1.lr.decay_tokens=0",
    "training.eval_samples=8",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; what memtrain needs comes from this one's packages."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    ours = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (ours / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    # not the version that the tests' own environment may have: it is found beside this one's packages
    install = [*pip, "--no-deps", "--no-index", "--ignore-installed", "-q", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """`command` in an environment of which only the wheel is known."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK", "WORLD_SIZE", "MLFLOW_TRACKING_URI")}
    env = kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_wheel_has_what_the_packages_have_and_nothing_else(wheel: Path) -> None:
    import zipfile

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
    assert {"training/cluster/job.sh", "evaluation/report/published.yaml", "model/py.typed"} <= names


def test_overview_names_every_command_and_unknown_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert memtrain.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", shown, re.MULTILINE) for name in command_names())
    assert memtrain.main(["pretrian"]) == 2
    assert "'pretrian' is not a command; did you mean 'pretrain'?" in capsys.readouterr().err
    assert memtrain.main(["xyz"]) == 2
    assert "'xyz' is not a command; the commands are ablation" in capsys.readouterr().err


def test_configurations_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "llama3.2_1.2b"} <= set(shipped_configs())
    for name in shipped_configs():
        assert config_file(name) == ROOT / "configs" / f"{name}.yaml"
    assert config_file("ablation/figure5").is_file()
    Path("quickstart").write_text("run: {}")
    assert config_file("quickstart") == Path("quickstart"), "a file of the working folder comes first"
    assert config_file("mine.yaml") == Path("mine.yaml"), "the reader of the file reports that it is missing"


def test_name_of_no_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        memtrain.main(["plan", "--config", "quickstrat"])
    assert end.value.code == 2
    assert "'quickstrat' is neither a file nor a shipped configuration" in capsys.readouterr().err


def test_the_version_is_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", __version__)
    assigned = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^(__version__|VERSION|version) *= *[\"']\d", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert assigned == ["training/version.py"]
    assert not re.search(r"version=[\"']", (ROOT / "setup.py").read_text(encoding="utf-8"))


def test_citation_is_that_of_the_newest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    releases = re.findall(r"^## (\d+\.\d+\.\d+) - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert str(citation["version"]) == releases[0]
    assert citation["license"] == "Apache-2.0"


def test_installed_commands_start_anywhere_and_speak_of_themselves(environment: Path, tmp_path: Path) -> None:
    program = str(environment / "bin" / "memtrain")
    assert run([program, "--version"], tmp_path).stdout == f"memtrain {__version__}\n"
    shown = run([program, "pretrain", "--help"], tmp_path).stdout
    assert "memtrain pretrain --config quickstart" in shown
    assert "deepspeed -q --num_gpus 2 --module launchers.pretrain --config quickstart" in shown
    assert "python launchers/" not in shown
    done = run([program, "pretrain", "--config", "quickstart", "--print-config"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["run"]["name"] == "quickstart"
    planned = run([program, "plan", "--config", "lm2_1.7b", "--devices", "h200:8", "--as-is"], tmp_path)
    assert planned.returncode == 0, planned.stderr
    bad = run([program, "pretrain", "--config", "quickstart", "model.hidden_sise=3"], tmp_path)
    assert bad.returncode == 2
    assert "did you mean 'hidden_size'?" in bad.stderr


def test_installed_job_script_starts_installed_launchers(environment: Path, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from training.cluster.profile import load_profile
from training.cluster.script import PROJECT, RunJob, training_script
from launchers._cli import cluster_file, config_file
from training.config import load_config
print(training_script(RunJob(load_config(config_file("quickstart")), config_file("quickstart"), (), Path.cwd()),
                      load_profile(cluster_file("local"))))
"""
    done = run([str(environment / "bin" / "python"), "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    project = re.search(r"^project=(\S+)$", done.stdout, re.MULTILINE)
    assert project is not None
    assert (Path(project.group(1)) / "launchers" / "pretrain.py").is_file()
    assert str(ROOT) not in done.stdout


@pytest.mark.slow
def test_installed_quickstart_ends_as_it_does_from_the_checkout(environment: Path, tmp_path: Path) -> None:
    installed, checkout = tmp_path / "installed", tmp_path / "checkout"
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    python = str(environment / "bin" / "python")
    launch = ["-q", "--num_gpus", "2", "--master_port", str(free_port())]
    given, launchers = ["--config", "quickstart", *SHORT], ROOT / "launchers"
    commands = {
        installed: [
            [str(environment / "bin" / "memtrain"), "prepare_data", *given],
            [python, deepspeed, *launch, "--module", "launchers.pretrain", *given],
            [str(environment / "bin" / "memtrain"), "generate", *given, "--max-tokens", "8"],
        ],
        checkout: [
            [sys.executable, str(launchers / "prepare_data.py"), *given],
            [sys.executable, deepspeed, *launch, str(launchers / "pretrain.py"), *given],
            [sys.executable, str(launchers / "generate.py"), *given, "--max-tokens", "8"],
        ],
    }
    texts = {}
    for folder, lines in commands.items():
        folder.mkdir()
        for line in lines:
            done = run(line, folder)
            assert done.returncode == 0, done.stdout + done.stderr
        texts[folder] = done.stdout
    curves = [
        [
            (line["step"], line.get("loss"), line.get("valid_loss"))
            for line in map(json.loads, (folder / "runs/short/metrics.jsonl").read_text().splitlines())
        ]
        for folder in commands
    ]
    assert len(curves[0]) >= 4
    assert curves[0] == curves[1]
    assert texts[installed] == texts[checkout]
    state = json.loads(next((installed / "runs/short/checkpoints").glob("step-*/state.json")).read_text())
    assert state["versions"]["memtrain"] == __version__
