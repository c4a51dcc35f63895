"""The one reader and writer of YAML: a scalar without quotes keeps its text, and its field decides what it is.

YAML 1.1, which PyYAML follows, changes plain scalars before anyone knows what they are for: `12:00:00` is 43200, `0123`
is 83, `2026_01` is 202601, `no` is false. Here a plain scalar is read as `Plain`, a piece of text, and
`data_prep.field_values.fit` turns it into what the type of its field asks for.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import one_line
from data_prep.files import encodes

MOST_VALUES = 100_000  # of a file; aliases of aliases would multiply a few lines into any number
DEEPEST = 50  # lists and sections inside each other
_PLAIN = "plain"
_TEXT = "tag:yaml.org,2002:str"


class YamlError(ValueError):
    """Text that cannot be read as YAML; the message is one line."""


class Plain(str):
    """A scalar without quotes, as it was typed."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Composes nodes; a plain scalar gets a tag of its own instead of the type that its text looks like."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)


def read_yaml(text: str) -> Any:
    """The value of one YAML document: dictionaries with text as keys, lists, `Plain` and, for quoted scalars, str.

    An empty document is None. Raises `YamlError` for anything else than that: no YAML, a key that stands twice in one
    section, a tag other than !!str, a list that contains itself, more than 100,000 values, 50 levels or one document.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Values().of(node)
    except yaml.YAMLError as error:
        raise YamlError(one_line(error, None)) from None
    except RecursionError:
        raise YamlError(f"it is nested more than {DEEPEST} levels deep") from None


def read_file(path: Path) -> Any:
    """The value of a file. Raises `YamlError` when it cannot be read, `FileNotFoundError` when it is not there."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (UnicodeDecodeError, OSError) as error:
        raise YamlError(one_line(error, None)) from None


def read_argument(text: str) -> Any:
    """What follows `=` in an override: a list or a section where it begins with a bracket, else the text as typed.

    A `#` begins no comment here. Text that stands in quotes as a whole is what the quotes hold.
    Raises `YamlError` when brackets or quotes are followed by something else than YAML.
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
            return Plain(text)  # begins with a quote, but is no text in quotes
        if isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(stripped):
            return read_yaml(stripped)
    return Plain(text)


class _Dumper(yaml.SafeDumper):
    """Writes text that holds a line break of Unicode's in double quotes, where it is an escape and not folded."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, text, '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None)


_Dumper.add_representer(str, _text)


def write_yaml(value: Any) -> str:
    """`value` as YAML that every reader reads the same: text that looks like something else is in quotes."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


class _Values:
    """Turns nodes into values, and counts them."""

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
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _at(key_node, "a key must be text, not a list or a section")
            key = str(self._scalar(key_node))
            if key in found:
                raise _at(key_node, f"key '{key}' stands there twice; remove one")
            found[key] = self.of(value_node, depth + 1)
        return found


def _at(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {node.start_mark.line + 1}: {problem}")


def _unusable(text: str) -> str:
    """Why no field takes the text; empty where one may."""
    if "\0" in text:
        return "it holds a zero character; remove it"
    return "" if encodes(text) else "it holds half of a character that UTF-8 cannot write; remove it"
