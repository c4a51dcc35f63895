"""Reads a configuration: YAML, `section.key=value` overrides, and the messages about a wrong one.

All problems are reported at once, each as `field: value, rule, way out`, before anything starts.
"""

import copy
import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data_prep.field_values import Refused, fit, is_nothing
from data_prep.yaml_reader import YamlError, read_argument, read_file, write_yaml
from training.config.run import RunConfig
from training.errors import ConfigError
from training.logs import without_secrets


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, and validate the result.

    Raises `ConfigError` that lists every problem.
    """
    raw, problems = read_yaml(path), []
    for override in overrides:
        try:
            apply_override(raw, override)
        except ConfigError as error:
            problems.append(str(error))
    try:
        config = parse_config(raw)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of a YAML file, with scalars as the text that was typed.

    Raises `ConfigError` naming the file when it cannot be read or holds no sections.
    """
    try:
        raw = read_file(Path(path))
    except FileNotFoundError:
        raise ConfigError(
            f"--config: {path} does not exist; pass a YAML file such as configs/quickstart.yaml"
        ) from None
    except YamlError as error:
        raise ConfigError(f"--config: {path} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"--config: {path} holds {'str' if isinstance(raw, str) else type(raw).__name__}, but must hold sections "
            "(run:, data:, model:, …)"
        )
    return raw


def parse_config(raw: dict[str, Any]) -> RunConfig:
    """Validate a configuration given as nested dictionaries. Raises `ConfigError` that lists every problem."""
    try:
        return RunConfig.model_validate(fit(raw, RunConfig))
    except ValidationError as error:
        found = error.errors()
    # pydantic also reports a list as too short when all of its elements failed: drop that second error
    found = [e for e in found if e["type"] != "too_short" or len([o for o in found if o["loc"][:1] == e["loc"]]) == 1]
    lines = list(dict.fromkeys(explain(problem) for problem in found))
    raise ConfigError("\n".join(lines + _hidden_problems(raw, [e["loc"] for e in found])))


def _hidden_problems(raw: dict[str, Any], wrong: list[tuple[int | str, ...]]) -> list[str]:
    """Return the broken rules between sections, which pydantic checks only when every field is valid by itself.

    The fields at the locations `wrong` are removed for this, so that their defaults are used.
    """
    if () in wrong:
        return []
    trial = copy.deepcopy(raw)
    for location in wrong:
        node: Any = trial
        for part in location[:-1]:
            node = node[part] if _has(node, part) else {}
        if isinstance(node, dict) and isinstance(node.pop(location[-1], None), dict | list):
            return []  # a whole section is wrong: its rules with the others cannot be checked
    try:
        RunConfig.model_validate(fit(trial, RunConfig))
    except ValidationError as error:
        return [explain(e) for e in error.errors() if e["loc"] == () and e["type"] == "value_error"]
    return []


def _has(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set the value that `section.key=value` names in nested dictionaries and lists. Raises `ConfigError`."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override: '{override}' must have the form section.key=value, such as parallel.tensor=2")
    try:
        value = read_argument(text)
    except YamlError as error:
        way = f"close its brackets, and quote the whole override for the shell; to mean the text: {key}='\"…\"'"
        why = f"the value after = is not YAML ({error}); {way}" if text.lstrip()[:1] in ("[", "{") else str(error)
        raise ConfigError(f"override: '{override}': {why}") from None
    node: Any = raw
    for part in parts[:-1]:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if is_nothing(node.get(part)):
        node[part] = {}
    if not isinstance(node[part], dict | list):
        raise ConfigError(
            f"override: '{override}': '{part}' is the value {node[part]!r}, not a section; end the key after '{part}'"
        )
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
        raise ConfigError(f"override: '{override}': '{part}' must be a number from 0 to {len(node) - 1} (a list)")
    return int(part)


def explain(problem: Any, root: type[BaseModel] | None = None) -> str:
    """Return one pydantic error of `root` (default: `RunConfig`) as a line `field: value, rule, way out`."""
    where = ".".join(str(part) for part in problem["loc"])
    if isinstance(problem["input"], Refused) and problem["type"] != "value_error":
        return f"{where}: {problem['input']!r} {problem['input'].reason}"
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(problem["loc"][:-1], root or RunConfig)
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
            return f"{where}: unknown key; {hint}"
        case "missing":
            return f"{where}: missing; set it in the file or with {where}=VALUE"
        case "value_error":
            text = str(problem["ctx"]["error"])
            return text if not where else f"{where}: {_shown(problem['input'])}{text}"
        case "path_type":  # pydantic's own message names a Python class
            return f"{where}: {problem['input']!r} is refused: input must be a valid path"
    return f"{where}: {problem['input']!r} is refused: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shown(value: Any) -> str:
    return f"{value!r} " if isinstance(value, str | int | float) else ""


def _known_keys(path: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """Return the keys of the section of `root` at `path`, found through the types of the fields."""
    model: type[BaseModel] | None = root
    for part in path:
        if model is None or isinstance(part, int) or part not in model.model_fields:
            continue  # list positions and union tags are not fields
        model = _section_of(model.model_fields[part].annotation)
    if model is None:
        return []
    kinds = [model, *model.__subclasses__()]  # each memory kind is a subclass with fields of its own
    return list(dict.fromkeys(name for kind in kinds for name in kind.model_fields))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, dict, Union, types.UnionType, Annotated):
        return next((found for a in get_args(annotation) if (found := _section_of(a))), None)
    return None


def dump_yaml(config: RunConfig, without_password: bool = False) -> str:
    """Return the resolved configuration as YAML that `load_config` reads.

    without_password: remove user names and passwords from addresses, for text that is written into files.
    """
    resolved = config.model_dump(mode="json")
    return write_yaml(without_secrets(resolved) if without_password else resolved)
