"""The project's reader and writer of YAML: a scalar without quotes stays text, and its field decides its type.

YAML 1.1, which PyYAML implements, converts plain scalars without regard to their field: `12:00:00` is 43200, `0123` is
83, `2026_01` is 202601, `no` is false. Here a plain scalar is read as `Plain`, a text, and `data_prep.field_values.fit`
converts it to the type of its field.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import one_line
from data_prep.files import encodes

MOST_VALUES = 100_000  # of a file, because aliases of aliases can turn a few lines into any number of values
DEEPEST = 50  # levels of lists and sections inside each other
_PLAIN = "plain"
_TEXT = "tag:yaml.org,2002:str"


class YamlError(ValueError):
    """Text that cannot be read as YAML; the message is one line."""


class Plain(str):
    """A scalar without quotes, as it was typed."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Composes nodes, and tags a plain scalar as plain instead of with a type that its text looks like."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)


def read_yaml(text: str) -> Any:
    """Returns the value of one YAML document: dictionaries with str keys, lists, `Plain`, and str for quoted scalars.

    An empty document is None. Raises `YamlError` for invalid YAML, a key that a section has twice, a tag other than
    !!str, a list that contains itself, more than 100,000 values, more than 50 levels or more than one document.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Values().of(node)
    except yaml.YAMLError as error:
        raise YamlError(one_line(error, limit=None)) from None
    except RecursionError:
        raise YamlError(f"it is nested more than {DEEPEST} levels deep") from None


def read_file(path: Path) -> Any:
    """Returns the value of a file. Raises `YamlError` if it cannot be read, `FileNotFoundError` if it is missing."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (UnicodeDecodeError, OSError) as error:
        raise YamlError(one_line(error, limit=None)) from None


def read_argument(text: str) -> Any:
    """Returns the value after `=` in an override: a list or section when it begins with a bracket, else the text.

    A `#` begins no comment here. Quotes around the whole text are removed.
    Raises `YamlError` when text that begins with a bracket, or stands in quotes, is no valid YAML.
    """
    if problem := _unusable(text):
        raise YamlError(problem)
    stripped = text.strip()
    if stripped.startswith(("[", "{")):
        return read_yaml(stripped)
    if stripped.startswith(("'", '"')):
        try:
            node = yaml.compose(stripped, Loader=_Loader)
        except yaml.YAMLError:
            return Plain(text)  # begins with a quote, but is not text in quotes
        if isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(stripped):
            return read_yaml(stripped)
    return Plain(text)


class _Dumper(yaml.SafeDumper):
    """Writes text with a Unicode line break in double quotes, where it becomes an escape and is not folded."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, text, '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None)


_Dumper.add_representer(str, _text)


def write_yaml(value: Any) -> str:
    """Returns `value` as YAML that every reader reads alike: text that looks like another type is quoted."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


class _Values:
    """Converts nodes to values, and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def of(self, node: yaml.Node, depth: int = 0) -> Any:
        self._count += 1
        if self._count > MOST_VALUES or depth > DEEPEST:
            limit = f"more than {DEEPEST} levels deep" if depth > DEEPEST else f"more than {MOST_VALUES:,} values"
            raise _at(node, f"{limit}, with what its aliases repeat")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG:
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG:
            return self._section(node, depth)
        raise _at(node, f"tag {node.tag!r} is not read here; remove it")

    def _scalar(self, node: yaml.ScalarNode) -> str:
        if node.tag not in (_PLAIN, _TEXT):
            raise _at(node, f"tag {node.tag!r} is not read here; remove it, or quote the text")
        if problem := _unusable(node.value):
            raise _at(node, problem)
        return Plain(node.value) if node.tag == _PLAIN else str(node.value)

    def _section(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _at(key_node, "a key must be text, not a list or a section")
            key = str(self._scalar(key_node))
            if key in section:
                raise _at(key_node, f"key '{key}' stands there twice; remove one")
            section[key] = self.of(value_node, depth + 1)
        return section


def _at(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {node.start_mark.line + 1}: {problem}")


def _unusable(text: str) -> str:
    """Returns why no field can take the text, or an empty string."""
    if "\0" in text:
        return "it has a zero character; remove it"
    return "" if encodes(text) else "it has half of a character, which UTF-8 cannot represent; remove it"
