"""What a newcomer meets first is true: README, documentation, examples, files for contributors."""

import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from launchers._cli import command_names, config_file
from tests.e2e.commands import run_warm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "ARCHITECTURE.md")]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES += [*DOCS, ROOT / "examples" / "README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(text: str) -> list[tuple[str, str]]:
    """Language ("" where none is named) and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_blocks(text: str, language: str = "") -> list[str]:
    """Contents of the fenced blocks of a language; "" for those that name none."""
    return [block for name, block in fenced(text) if name == language]


def commands(path: Path) -> Iterator[list[str]]:
    """Every command line of this project in the code blocks of a page, as words; explanations and redirections cut."""
    for block in code_blocks(path.read_text(encoding="utf-8")):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            command = re.split(r" {3,}| [>|] ", line)[0]
            abbreviated = "…" in command or command.count("'") % 2
            if abbreviated or not re.match(r"memtrain |python launchers/", command):
                continue
            words = [f"{w}.yaml" if w in ("F", "FILE", "C") else w for w in shlex.split(command, comments=True)]
            yield words[1:] if words[0] == "memtrain" else [Path(words[1]).stem, *words[2:]]


def test_the_first_screen_is_short_and_says_what_when_and_how() -> None:
    assert len(README.splitlines()) < 150
    first = README[: README.index("## Compared with other code")]
    assert "docs/pictures/block.svg" in first
    assert "docs/babilong.png" in first
    assert "make quickstart" in first
    assert "memtrain pretrain --config quickstart" in first


def test_python_of_the_readme_runs() -> None:
    blocks = code_blocks(README, "python")
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 12
    names: dict[str, object] = {}
    exec(blocks[0], names)
    assert names["out"].logits.shape == (1, 1048, 8000)  # type: ignore[attr-defined]
    assert names["out"].state is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_the_pages_are_accepted(path: Path) -> None:
    for name, *words in commands(path):
        if name.startswith("-"):
            continue
        assert name in command_names(), f"{path.name}: memtrain {name}"
        module = importlib.import_module(f"launchers.{name}")
        try:
            module.parse_arguments(words)
        except SystemExit as end:
            raise AssertionError(f"{path.name}: {name} {shlex.join(words)} is refused") from end


def test_shipped_configurations_of_the_readme_exist() -> None:
    names = re.findall(r"`([\w.]+)`", README[README.index("Shipped configurations") :].split("\n\n")[0])
    assert len(names) >= 8
    for name in names:
        assert config_file(name).is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(path: Path) -> None:
    generated = {"configuration.md", "commands.md", "python.md"}  # of docs/reference, made by docs/site_hook.py
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target and Path(target).name not in generated:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_that_pages_name_exist(path: Path) -> None:
    folders = "data_prep|model|training|evaluation|experiments|launchers|benchmarks|tests|docs|configs|examples"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)", path.read_text(encoding="utf-8"))
    placeholder = re.compile(r"\b(?:PACKAGE|NAME|COMMAND|KIND)\b|test_FILE|XXXX")
    assert [name for name in named if not placeholder.search(name) and not (ROOT / name).exists()] == []


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    for path in (
        *PAGES,
        ROOT / ".ci/run",
        ROOT / ".github/workflows/ci.yml",
        ROOT / ".github/pull_request_template.md",
    ):
        named = set(
            re.findall(r"(?:^|`|run: |PATH )make ([a-z][\w-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert named <= targets, f"{path.name}: {named - targets}"


def test_both_ways_of_continuous_integration_run_the_same_targets() -> None:
    script = set(re.findall(r"^make ([\w-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {step.split("make ")[1] for step in steps} == script
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for repo in hooks for hook in repo["hooks"]] == ["make lint"]


def test_pictures_are_what_their_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/pictures/draw.py"))["PICTURES"]
    assert {path.stem for path in (ROOT / "docs/pictures").glob("*.svg")} == set(drawn)
    for name, draw in drawn.items():
        assert (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8") == draw().svg()


# -- examples --------------------------------------------------------------------------------------------------------


def example(folder: Path, name: str, *arguments: str) -> str:
    done = run_warm(ROOT / "examples" / name, *arguments, cwd=folder)
    assert done.code == 0, done.err
    return done.out


def test_example_looks_into_a_memory(tmp_path: Path) -> None:
    from PIL import Image

    said = example(tmp_path, "look_into_memory.py", "--steps", "12", "--output", "memory.png")
    assert "right answers: " in said
    picture = Image.open(tmp_path / "memory.png").convert("RGB")
    assert len(set(picture.resize((60, 40)).getdata())) > 50, "a heatmap has many colours"


def test_example_reads_with_a_state_that_does_not_grow(tmp_path: Path) -> None:
    said = example(tmp_path, "million_tokens.py", "--tokens", "40960")
    sizes = re.findall(r"^ *[\d,]+ +(\d+) KiB", said, re.MULTILINE)
    assert len(sizes) == 16
    assert len(set(sizes)) == 1
    assert "40,960" in said


def test_example_gives_a_llama_a_memory(tmp_path: Path) -> None:
    said = example(tmp_path, "llama_with_memory.py", "--steps", "60")
    difference = float(re.findall(r"difference to the Llama: (\S+)", said)[0])
    before, after = (float(x) for x in re.findall(r"second segment .*: ([\d.]+)$", said, re.MULTILINE))
    assert difference < 1e-4
    assert after < before - 0.05


# -- the documentation site ------------------------------------------------------------------------------------------

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")


def fields_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in re.findall(r"[A-Z]\w+", str(field.annotation)):
            for module in ("model.config", "data_prep.config", "training.config.sections"):
                found = getattr(importlib.import_module(module), inner, None)
                if isinstance(found, type) and issubclass(found, BaseModel):
                    yield from fields_of(found)


@needs_mkdocs
def test_every_field_and_every_command_is_in_the_reference() -> None:
    from training.config import RunConfig

    hook = runpy.run_path(str(ROOT / "docs/site_hook.py"))
    page = hook["configuration_page"]()
    names = set(fields_of(RunConfig))
    assert len(names) > 60
    assert {name for name in names if f"`{name}`" not in page} == set()
    shown = hook["commands_page"]()
    assert all(f"\n## {name}\n\n```text\nusage: python launchers/{name}.py" in shown for name in command_names())


@needs_mkdocs
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in ("index", "memory", "reference/configuration", "reference/python", "troubleshooting", "ARCHITECTURE"):
        assert (tmp_path / "site" / f"{page}.html").stat().st_size > 5000
    python = (tmp_path / "site/reference/python.html").read_text(encoding="utf-8")
    assert 'id="model.ModelConfig"' in python or 'id="model.config.ModelConfig"' in python
    assert "https://unpkg" not in (tmp_path / "site/index.html").read_text(encoding="utf-8"), "no request elsewhere"
