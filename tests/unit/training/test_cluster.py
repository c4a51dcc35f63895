"""Cluster profiles, the job scripts made of them, and the verdict on nodes; no Slurm needed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.commands import ROOT
from training.cluster.hostlist import expand
from training.cluster.nodes import NodeRequirements, judge, local_problem
from training.cluster.profile import ClusterProfile, load_profile, mebibytes, minutes
from training.cluster.script import RunJob, evaluation_script, preparation_script, training_script
from training.config import load_config
from training.errors import ConfigError

GPU = ROOT / "configs" / "cluster" / "gpu.yaml"
LOCAL = ROOT / "configs" / "cluster" / "local.yaml"
EVIL = "a b'c\"d$(touch pwned)`touch pwned`;touch pwned & #%"


def job(folder: Path, name: str = "quickstart", *overrides: str) -> RunJob:
    config_file = ROOT / "configs" / "quickstart.yaml"
    config = load_config(config_file)
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    return RunJob(config, config_file, overrides, folder)


def change(path: Path, folder: Path, **values: Any) -> ClusterProfile:
    raw = yaml.safe_load(path.read_text()) | values
    (folder / "cluster.yaml").write_text(yaml.safe_dump({k: v for k, v in raw.items() if v is not None}))
    return load_profile(folder / "cluster.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_load_and_make_scripts_that_bash_can_read(path: Path, tmp_path: Path) -> None:
    profile, run = load_profile(path), job(tmp_path)
    scripts = [
        training_script(run, profile, evaluation=True),
        evaluation_script(run, profile, ("--tasks", "mmlu")),
        preparation_script(run, profile, tmp_path / "data.slurm", 8),
    ]
    for script, command in zip(scripts, ("pretrain", "evaluate", "prepare_data"), strict=True):
        assert f"launchers/{command}.py" in script
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_gpu_script_reads_as_a_person_would_write_it(tmp_path: Path) -> None:
    script = training_script(job(tmp_path), load_profile(GPU))
    head = script.partition("# ---- the same for every run")[0].splitlines()
    for line in (
        "#!/bin/bash -l",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=my-project",
        "#SBATCH --nodes=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=h100:8",
        "#SBATCH --mem=900G",
        "#SBATCH --signal=USR2@600",
        "module load cuda/12.8",
        "source /project/my-project/memtrain/.venv/bin/activate",
        "export OMP_NUM_THREADS=12",
        "export NCCL_SOCKET_IFNAME=ib0",
        "python=(python)",
        "total_steps=400",
    ):
        assert line in head, line


def test_containers(tmp_path: Path) -> None:
    container = {"image": "/images/my train.sif", "mounts": ["/data"]}
    profile = change(GPU, tmp_path, venv=None, modules=None, container=container)
    script = training_script(job(tmp_path), profile)
    assert (
        f"python=(apptainer exec --nv --bind {ROOT},{tmp_path},{tmp_path}/runs,/data '/images/my train.sif'" in script
    )
    profile = change(GPU, tmp_path, venv=None, modules=None, container=container | {"runtime": "pyxis"})
    script = training_script(job(tmp_path), profile)
    assert "container_options=('--container-image=/images/my train.sif' --container-mounts=" in script
    assert "/data:/data" in script and "python=(python)\n" in script


def test_every_value_arrives_in_bash_as_it_was_and_none_is_executed(tmp_path: Path) -> None:
    folder = tmp_path / EVIL
    folder.mkdir()
    profile = change(LOCAL, tmp_path, variables={"GREETING": EVIL})
    run = job(folder, EVIL, f"run.name={EVIL}", "tracking.experiment=x y")
    settings = training_script(run, profile).partition("# ---- the same for every run")[0]
    shown = 'printf "%s\\0" "$run" "$script" "$GREETING" "${overrides[@]}" "$PWD"'
    done = subprocess.run(["bash", "-c", settings + shown], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = [str(run.run), str(run.script), EVIL, f"run.name={EVIL}", "tracking.experiment=x y", str(folder)]
    assert done.stdout.split("\0")[:-1] == expected
    assert not list(tmp_path.rglob("pwned"))
    options = [line for line in settings.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --job-name=a_b_c_d_touch_pwned_touch_pwned_touch_pwned" in options


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "bell\a"])
def test_names_that_a_script_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        job(tmp_path, name).check()


def test_a_password_comes_into_no_script(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: holds a password") as error:
        job(tmp_path, "x", "tracking.uri=https://me:hidden@host").check()
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partitoin": "gpu"}, "cluster.partitoin: unknown key; did you mean 'partition'"),
        ({"time": None}, "cluster.time: missing"),
        ({"time": "tomorrow"}, "cluster.time: 'tomorrow' is not a time limit"),
        ({"memory": "much"}, "cluster.memory: 'much' is not an amount of memory"),
        ({"partition": "a\n#SBATCH --uid=0"}, "holds a line break"),
        ({"ranks_per_node": 16}, "cluster.ranks_per_node: 16 ranks on 8 GPUs"),
        ({"container": {"image": "x.sif"}}, "cluster.venv: set together with container"),
        ({"time": "5", "signal_seconds": 300}, "cluster.signal_seconds: 300 must be less than time 5"),
        ({"variables": {"A-B": "1"}}, "cluster.variables: 'A-B' cannot be the name"),
        ({"variables": {"URI": "https://me:pw@host"}}, "cluster.variables.URI: holds a password"),
        ({"sbatch": ["END"]}, "cluster.sbatch: 'END' is not an option"),
        ({"nodes": 0}, "cluster.nodes: 0 is refused"),
        ({"exclude": ["n[1-3"]}, "cluster.exclude: 'n[1-3' has brackets that do not match"),
        ({"exclude": "n1,n[3-1]"}, "has the range 3-1, whose end is before its start; write 1-3"),
    ],
)
def test_profiles_are_refused_with_field_rule_and_way_out(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        change(GPU, tmp_path, **values)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("time", "12:00:00", "12:00:00"),
        ("time", "1-00", "1-00"),
        ("account", "0123", "0123"),
        ("qos", "1e3", "1e3"),
        ("reservation", "2026_01", "2026_01"),
        ("partition", "no", "no"),
        ("exclude", "[017, 1_8]", ("017", "1_8")),
        ("variables", "{OMP: 010, X: yes, 3_A: 1}", None),
        ("variables", "{OMP: 010, X: yes}", {"OMP": "010", "X": "yes"}),
        ("data.time", "00:30:00", "00:30:00"),
        ("sbatch", "[--mail-type=END, --comment=a#b]", ("--mail-type=END", "--comment=a#b")),
    ],
)
def test_values_of_a_profile_are_what_was_typed(tmp_path: Path, key: str, text: str, value: Any) -> None:
    if value is None:
        with pytest.raises(ConfigError, match="'3_A' cannot be the name"):
            load_profile(LOCAL, [f"cluster.{key}={text}"])
        return
    *section, last = key.split(".")
    lines = [line for line in LOCAL.read_text().splitlines() if not line.startswith(f"{key}:")]
    lines += [f"{section[0]}:", f"  {last}: {text}"] if section else [f"{key}: {text}"]
    path = tmp_path / "cluster.yaml"
    path.write_text("\n".join(lines) + "\n")
    for profile in (load_profile(path), load_profile(LOCAL, [f"cluster.{key}={text}"])):
        found: Any = profile
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def test_twelve_hours_are_not_thirty_days(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("partition: main\ntime: 12:00:00\nnodes: 2\n")
    assert minutes(load_profile(path).time) == 720
    assert "#SBATCH --time=12:00:00" in training_script(job(tmp_path), load_profile(path)).splitlines()


def test_home_folders_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    home = ["cluster.venv=~/venv", "cluster.preflight.folders=[~/scratch]"]
    profile = load_profile(LOCAL, home)
    assert (profile.venv, profile.preflight.folders) == ("/home/me/venv", ("/home/me/scratch",))
    container = load_profile(LOCAL, ["cluster.container={image: ~/x.sif, mounts: ['~/a:/b']}"]).container
    assert container is not None and (container.image, container.mounts) == ("/home/me/x.sif", ("/home/me/a:/b",))


def test_overrides_change_a_profile() -> None:
    assert load_profile(GPU, ["cluster.nodes=3", "cluster.preflight.enabled=false"]).nodes == 3
    with pytest.raises(ConfigError, match=r"--cluster: nowhere\.yaml does not exist"):
        load_profile(Path("nowhere.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 90.5), ("02:30:00", 150), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:30", 2880.5)],
)
def test_time_limits(text: str, expected: float) -> None:
    assert minutes(text) == expected


def test_amounts_of_memory() -> None:
    assert [mebibytes(text) for text in ("512M", "400G", "2T")] == [512, 409600, 2097152]


def fact(node: str, clock: float = 0.0, **versions: str) -> dict[str, Any]:
    return {"node": node, "clock": 1000.0 + clock, "versions": {"torch": "2.13", "python": "3.11"} | versions}


def test_nodes_alike_are_fine() -> None:
    assert judge([fact("a"), fact("b", 0.4), fact("c", -0.4)], 5.0) == {}


def test_the_one_that_differs_is_bad() -> None:
    facts = [fact("a"), fact("b", torch="2.12"), fact("c"), fact("d", 60)]
    verdicts = judge(facts, 5.0)
    assert verdicts.keys() == {"b", "d"}
    assert verdicts["b"] == "bad has torch 2.12, others 2.13"
    assert verdicts["d"].startswith("bad its clock differs by +60")


def test_of_two_that_differ_nobody_is_blamed() -> None:
    assert judge([fact("a"), fact("b", torch="2.12")], 5.0) == {"b": "unclear has torch 2.12, others 2.13"}
    verdicts = judge([fact("a"), fact("b", 8)], 5.0)
    assert verdicts.keys() == {"a", "b"} and all(text.startswith("unclear") for text in verdicts.values())


def test_what_a_node_lacks(tmp_path: Path) -> None:
    def lacks(**values: Any) -> str:
        usual: dict[str, Any] = {
            "gpus": 0,
            "memory_gib": 0.01,
            "disk_gib": 0.001,
            "folders": [tmp_path],
            "clock_skew": 5.0,
        }
        return local_problem(NodeRequirements(**(usual | {"all_reduce_mib": 1, "timeout": 5.0} | values)))

    assert lacks() == ""
    assert "GiB of memory available, 1e+06 needed" in lacks(memory_gib=1e6)
    assert "GiB free, 1e+06 needed" in lacks(disk_gib=1e6)
    assert "cannot be written (No such file" in lacks(folders=[tmp_path / "nowhere"])
    assert list(tmp_path.iterdir()) == []


def count_starts(run: Path, starts: int) -> list[str]:
    """What `job.sh` says when it counts so many starts, as long as it goes on."""
    text = (ROOT / "training" / "cluster" / "job.sh").read_text(encoding="utf-8")
    functions = text[text.index("say()") : text.index("# one process on each node")]
    settings = f"run={run} state={run}/slurm max_attempts=2 job=1 SLURM_JOB_NODELIST=n1\n"
    done = subprocess.run(
        ["bash", "-uc", settings + functions + "count_attempt\n" * starts], capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_starts_are_counted_until_they_are_too_many(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    lines = count_starts(tmp_path, 4)
    assert ["start 1 of" in lines[0], "start 2 of" in lines[1], "given up: 2 starts" in lines[2]] == [True] * 3
    assert len(lines) == 3


def test_starts_that_cannot_be_counted_are_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "slurm" / "attempts").mkdir(parents=True)  # as a full disk: no number can be written there
    (line,) = count_starts(tmp_path, 2)
    assert "given up" in line
    assert "cannot be written" in line


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[01,3],m", ["r1n01", "r1n3", "r2n01", "r2n3", "m"]),
        ("n[1-2]-ib, n[1-2]-ib", ["n1-ib", "n2-ib"]),
        ("gpu-a.site,10.0.0.1", ["gpu-a.site", "10.0.0.1"]),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert expand([text]) == names


@pytest.mark.parametrize(
    "text",
    ["n[", "n]", "n[1[2]]", "n[]", "n[a-b]", "n[1-]", "a,,b", "a b", ",", "n[0-99999]", "n[1-300]m[1-300]"],
)
def test_lists_of_nodes_that_slurm_would_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|separate"):
        expand([text])


@pytest.mark.parametrize(
    "exclude", [["node[1-3,7]"], "node[1-3,7]", "node1,node2, node3,node7", ["node[1-2]", "node[3,7]"]]
)
def test_excluded_nodes_are_the_same_however_they_are_written(exclude: Any, tmp_path: Path) -> None:
    profile = change(LOCAL, tmp_path, exclude=exclude)
    assert profile.excluded_nodes == ["node1", "node2", "node3", "node7"]
    script = training_script(job(tmp_path), profile)
    assert "exclude=node1,node2,node3,node7\n" in script
    (line,) = (line for line in script.splitlines() if line.startswith("#SBATCH --exclude="))
    assert expand([line.partition("=")[2]]) == profile.excluded_nodes


def test_an_override_may_be_a_list_of_nodes() -> None:
    assert load_profile(GPU, ["cluster.exclude=node[1-3,7]"]).excluded_nodes[-1] == "node7"


SCONTROL = """#!/usr/bin/env python3
import sys
sys.path.insert(0, ROOT)
from training.cluster.hostlist import expand
assert sys.argv[1:3] == ["show", "hostnames"], sys.argv
print(*expand([sys.argv[3]]), sep="\\n")
"""


@pytest.mark.parametrize("exclude", ["", "n[1-2,4]"])
def test_the_job_leaves_out_all_nodes_of_a_list(exclude: str, tmp_path: Path) -> None:
    """In bash, with lists in the profile and in what a person wrote into the run's own file."""
    profile = change(LOCAL, tmp_path, exclude=exclude or None)
    text = (ROOT / "training" / "cluster" / "job.sh").read_text(encoding="utf-8")
    function = text[text.index("excluded() {") : text.index("latest() {")]
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(SCONTROL.replace("ROOT", repr(str(ROOT))))
    command.chmod(0o755)
    (tmp_path / "excluded-nodes").write_text("n[7-8]\nn1\n")
    line = next(line for line in training_script(job(tmp_path), profile).splitlines() if line.startswith("exclude="))
    shell = f"PATH={command.parent}:$PATH; state={tmp_path}\n{line}\n{function}\nexcluded"
    done = subprocess.run(["bash", "-uc", shell], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["n1", "n2", "n4", "n7", "n8"] if exclude else ["n1", "n7", "n8"])
