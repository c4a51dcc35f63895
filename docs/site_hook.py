"""What MkDocs generates from the code: fields of a configuration, help of the commands, the Python API.

MkDocs loads this file as a hook. Nothing it makes is in the repository, so nothing can be out of date.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Pages and pictures that live outside docs/, at the same path in the site.
FROM_ROOT = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
PICTURES = ("benchmarks/results", "experiments/results")
# The modules whose public names are the Python API.
API = {
    "model": "Build a model, call it, carry its state.",
    "data_prep": "Prepare a folder of token shards; read samples and batches from it.",
    "training.config": "Read and check the configuration of a run.",
}
API_EXTRA = {
    "training.checkpoint.trained_model": "Load the model of a checkpoint.",
    "model.generation": "Generate tokens with a constant state.",
    "model.memory.interface.recording": "Record what a memory reads and writes.",
    "evaluation.interpret.reading": "Turn recorded tensors into reads of earlier tokens.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files of the repository that pages refer to."""
    pages = {"configuration": configuration_page(), "commands": commands_page(), "python": python_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for name in FROM_ROOT:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in (path for folder in PICTURES for path in sorted((ROOT / folder).glob("*.*"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links between the repository's files links between the site's pages."""
    if page.file.src_uri in FROM_ROOT:
        markdown = re.sub(r"\]\(((?:\.\./)?)docs/", r"](\1", markdown)
    elif "/" not in page.file.src_uri:
        markdown = re.sub(r"\]\(\.\./(?=[A-Za-z])", "](", markdown)
    return markdown


def configuration_page() -> str:
    """Every field of every configuration file, from the pydantic models."""
    from training.cluster.profile import ClusterProfile
    from training.config import RunConfig
    from training.config.family import FamilyFile

    text = (
        "# Configuration\n\nGenerated from the models that check a file. A run is one YAML file; any value can be set "
    )
    text += "on the command line as `section.key=value`. Unknown keys are refused. `memtrain pretrain --config FILE "
    text += "--print-config` prints the resolved file.\n"
    text += "".join(_sections(RunConfig.model_json_schema()))
    text += "\n## Cluster profile {#cluster-profile}\n\nThe file that `submit.py --cluster` reads.\n"
    text += "".join(_sections(ClusterProfile.model_json_schema(), "cluster"))
    text += "\n## Family of runs {#family}\n\nThe file that `ablation.py --config` reads.\n"
    return text + "".join(_sections(FamilyFile.model_json_schema(), "family"))


def _sections(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """Markdown of `schema`'s fields and, below them, of the sections they hold."""
    definitions, parts = schema.get("$defs", {}), []

    def walk(path: str, node: dict[str, Any], depth: int) -> None:
        title = "" if path == prefix else f"\n{'#' * min(depth, 4)} `{path}` {{#{_anchor(path)}}}\n\n"
        about = (node.get("description") or "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"{title}{about}\n\n" if title else "\n")
        parts.append("| field | value | default | meaning |\n|---|---|---|---|\n")
        required = node.get("required", [])
        parts.extend(_row(name, field, name in required) for name, field in node.get("properties", {}).items())
        for name, field in node.get("properties", {}).items():
            found = list(dict.fromkeys(_references(field)))
            for reference in found:
                inner = definitions[reference]
                listed = "[]" if field.get("type") == "array" else ""
                kind = inner.get("properties", {}).get("kind", {}).get("const")
                label = f"={kind}" if kind and len(found) > 1 else ""
                walk(f"{path}.{name}{listed}{label}".lstrip("."), inner, depth + 1)

    walk(prefix, schema, 1)
    return parts


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


def _references(field: dict[str, Any]) -> list[str]:
    """Names of the sections that a field may hold."""
    if "$ref" in field:
        return [field["$ref"].rsplit("/", 1)[1]]
    inner = [*field.get("anyOf", []), *field.get("oneOf", []), *field.get("prefixItems", [])]
    inner += [field[key] for key in ("items", "additionalProperties") if isinstance(field.get(key), dict)]
    return [name for part in inner for name in _references(part)]


def _row(name: str, field: dict[str, Any], required: bool) -> str:
    default = "required" if required else f"`{_value(field['default'])}`" if "default" in field else "its own defaults"
    about = (field.get("description") or "").replace("|", "\\|").replace("\n", " ")
    return f"| `{name}` | {_type(field)} | {default} | {about} |\n"


def _value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _type(field: dict[str, Any]) -> str:
    """What a field may hold, in words."""
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_type(part) for part in field[key]))
    if "enum" in field:
        return ", ".join(f"`{_value(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{_value(field['const'])}`"
    if "$ref" in field:
        return "a section"
    kind = field.get("type", "text")
    if kind == "array":
        inner = _type(field["items"]) if isinstance(field.get("items"), dict) else "values"
        return f"list of {inner}"
    names = {"object": "mapping", "string": "text", "boolean": "true or false", "null": "`null`"}
    return names.get(kind, kind) + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(found)}" if found else ""


def commands_page() -> str:
    """The help of every command, as the command prints it."""
    from launchers._cli import command_names

    text = "# Commands\n\nGenerated from each command's `--help-all`; `--help` shows the most used part of it on one "
    text += "screen. `memtrain NAME` is the same code as `python launchers/NAME.py`; `--config` also takes the name of "
    text += "a shipped configuration.\n"
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"
    try:
        for name in command_names():
            text += f"\n## {name}\n\n```text\n{_help(name)}\n```\n"
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return text


def _help(name: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(f"launchers.{name}").main(["--help-all"])
    return out.getvalue().rstrip()


def python_page() -> str:
    """The public names of the packages, for mkdocstrings to fill in from their docstrings."""
    text = "# Python API\n\nGenerated from docstrings. B batch, S segments, T tokens of a segment, L = S·T, N slots, "
    text += "D hidden size, H heads, V vocabulary.\n"
    for module, about in API.items():
        text += f"\n## `{module}`\n\n{about}\n"
        for name in importlib.import_module(module).__all__:
            text += f"\n::: {module}.{name}\n    options:\n      heading_level: 3\n"
    for module, about in API_EXTRA.items():
        text += f"\n## `{module}`\n\n{about}\n"
        text += f"\n::: {module}\n    options:\n      heading_level: 3\n      show_root_heading: false\n"
    return text
