"""ARCHITECTURE.md names files that exist, and the rooms keep to its rules."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_prep", "model", "training", "evaluation", "experiments", "launchers")
# what each package may import besides itself
ALLOWED = {
    "data_prep": set[str](),
    "model": set[str](),
    "training": {"data_prep", "model"},
    "evaluation": {"data_prep", "model", "training"},
    "experiments": {"data_prep", "model", "training", "evaluation", "benchmarks"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, at its top or inside its functions."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def test_every_answer_to_where_is_names_a_file_that_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page[page.index("## Where is") :].split("\n## ")[0] if "## Where is" in page else ""
    answers = re.findall(r"^\| .+\? \| `([^`]+)` \|$", section.partition("\n")[2], re.MULTILINE)
    assert len(answers) >= 12
    assert [path for path in answers if not (ROOT / path).is_file()] == []


def test_every_path_of_the_page_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:data_prep|model|training|evaluation|experiments|launchers|tests)/[\w./]*)`", page)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_has_its_three_pictures_whose_paths_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\(docs/pictures/(\w+)\.svg\)", page))
    assert {"rooms", "block", "token"} <= shown
    way = (ROOT / "docs/pictures/token.svg").read_text(encoding="utf-8")
    paths = re.findall(r">((?:data_prep|model|training)/[\w./]+)<", way)
    assert len(paths) == 16
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = (ROOT / "docs/pictures/rooms.svg").read_text(encoding="utf-8")
    assert set(PACKAGES) <= set(re.findall(r">(\w+)<", rooms))


@pytest.mark.parametrize("package", list(ALLOWED))
def test_no_import_points_upwards(package: str) -> None:
    forbidden = set(PACKAGES) | {"benchmarks", "tests"}
    forbidden -= ALLOWED[package] | {package}
    wrong = {str(path.relative_to(ROOT)): imported(path) & forbidden for path in sources(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_rooms_and_files_stay_small() -> None:
    assert len(list((ROOT / "training").glob("*.py"))) <= 12
    assert len(list((ROOT / "data_prep").glob("*.py"))) <= 8
    files = [path for package in PACKAGES for path in sources(package)]
    lines = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines[-1] <= 400
    assert lines[int(0.9 * len(lines))] <= 250


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("megatron", "model/megatron.py"),
        ("deepspeed", "training/engine/deepspeed_library.py"),
        ("mlflow", "training/tracking/store.py"),
    ],
)
def test_one_file_imports_a_library(library: str, only: str) -> None:
    found = [path for package in PACKAGES for path in sources(package) if library in imported(path)]
    assert [str(path.relative_to(ROOT)) for path in found] == [only]


def asserts(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether a function of the tests asserts, expects an error, or calls one of `helpers`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in helpers or name.rpartition(".")[2].startswith("assert_"):
                return True
    return False


def test_every_test_asserts() -> None:
    functions = [
        (path, node)
        for path in sources("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    helpers = {"pytest.raises", "pytest.warns", "pytest.fail"}
    for _ in range(2):  # a helper may call another
        helpers |= {node.name for _, node in functions if node.name[:5] != "test_" and asserts(node, helpers)}
    tests = [(path, node) for path, node in functions if node.name.startswith("test_") and path.name[:5] == "test_"]
    assert len(tests) > 1000
    assert [f"{path.name}:{node.lineno} {node.name}" for path, node in tests if not asserts(node, helpers)] == []
