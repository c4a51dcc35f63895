"""Convert typed text to the type of its field: text, numbers of YAML 1.2's core schema, switches.

`fit` walks a value that `data_prep.yaml_reader` has read along the annotations of pydantic models. A value that its
field cannot take becomes `Refused`. No field accepts that, so pydantic reports its reason together with other problems.
"""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from data_prep.yaml_reader import Plain

LARGEST = 2**64 - 1  # largest whole number
NOTHING = ("", "~", "null", "Null", "NULL")
SWITCHES = {
    form: value
    for word, value in {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}.items()
    for form in (word, word.capitalize(), word.upper())
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_OTHER_FLOATS = {
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_CORE_SWITCHES = {form: value for form, value in SWITCHES.items() if form.lower() in ("true", "false")}
_EXPONENT = 400  # a number of a larger exponent is no float, and its digits would fill the memory


@dataclass(frozen=True)
class Refused:
    """A value that its field cannot take, and the reason."""

    value: Any
    reason: str

    def __repr__(self) -> str:
        return repr(self.value)


def fit(value: Any, kind: Any) -> Any:
    """Returns `value` with every scalar in it converted to the type of the annotation `kind`.

    Unknown keys of a section stay, so that pydantic refuses them.
    """
    kinds = _alternatives(kind)
    if isinstance(value, str):
        return _scalar(value, kinds)
    if isinstance(value, dict):
        return _section(value, kinds)
    if isinstance(value, list):
        return _list(value, kinds)
    return value


def core(value: Any) -> Any:
    """Returns `value` with every plain scalar converted by YAML 1.2's core schema, for files without a model."""
    if isinstance(value, dict):
        return {key: core(item) for key, item in value.items()}
    if isinstance(value, list):
        return [core(item) for item in value]
    if not isinstance(value, Plain):
        return value
    if is_nothing(value):
        return None
    if value in _CORE_SWITCHES:
        return _CORE_SWITCHES[value]
    number = _number(value)
    return str(value) if number is None or isinstance(number, Refused) else number


def is_nothing(value: Any) -> bool:
    """Whether a value is None, or a plain scalar that means null in YAML."""
    return value is None or (isinstance(value, Plain) and value in NOTHING)


def _alternatives(kind: Any) -> list[Any]:
    """Returns the types of a union, without the metadata of `Annotated`; a literal stays one type."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _alternatives(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [alternative for argument in get_args(kind) for alternative in _alternatives(argument)]
    return [kind]


def _section(value: dict[str, Any], kinds: list[Any]) -> Any:
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            return {
                key: fit(item, fields[key].annotation) if key in fields else core(item) for key, item in value.items()
            }
        if get_origin(kind) in (dict, Mapping):
            of = get_args(kind)[1]
            return {key: fit(item, of) for key, item in value.items()}
    return _no_text(core(value), kinds, "a section", "{a: b}")


def _list(value: list[Any], kinds: list[Any]) -> Any:
    for kind in kinds:
        if get_origin(kind) in (list, tuple, set, frozenset):
            of = [argument for argument in get_args(kind) if argument is not Ellipsis]
            last = of[-1] if of else Any
            return [fit(item, of[at] if at < len(of) else last) for at, item in enumerate(value)]
    return _no_text(core(value), kinds, "a list", "[a]")


def _no_text(value: Any, kinds: list[Any], what: str, form: str) -> Any:
    """Returns a list or section, or `Refused` where the field takes only text; form: an example of the text."""
    if not _takes_text(kinds) or any(get_origin(kind) is Literal for kind in kinds):
        return value
    return Refused(value, f"is {what}, but must be text (a string); quote it to mean the text: '\"{form}\"'")


def _takes_text(kinds: list[Any]) -> bool:
    return str in kinds or Path in kinds


def _scalar(text: str, kinds: list[Any]) -> Any:
    literals = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if is_nothing(text):
        if text and type(None) not in kinds and _takes_text(kinds):
            return Refused(text, f'means that there is no value; quote it to mean the text: "{text}"')
        return None
    if text in literals:
        return str(text)
    if text in SWITCHES and (bool in kinds or {"on", "off"} <= set(literals)):
        return SWITCHES[text] if bool in kinds else ("on" if SWITCHES[text] else "off")
    if bool in kinds and text in ("0", "1"):
        return text == "1"
    if bool in kinds:
        return Refused(str(text), "must be on or off (or yes, no, true, false): a valid boolean")
    if int in kinds or float in kinds or any(isinstance(value, int) for value in literals):
        number = _number(text.strip(" "), whole=float not in kinds)
        if number is not None:
            return number
        if not _takes_text(kinds) and not literals:
            return Refused(str(text), _no_number(text, whole=float not in kinds))
    return str(text)


def _number(text: str, whole: bool = False) -> int | float | Refused | None:
    """Returns the number that `text` is in YAML 1.2's core schema, None for other text; whole: 1e3 becomes 1000."""
    if _BASED.fullmatch(text) or (_DECIMAL.fullmatch(text) and (whole or len(text) < len(str(LARGEST)))):
        return _integer(text)
    if text in _OTHER_FLOATS:
        return _OTHER_FLOATS[text]
    if not _FLOAT.fullmatch(text):
        return None
    exact = Decimal(text) if len(text) <= _EXPONENT else None
    if exact is None or (exact and not -_EXPONENT < exact.adjusted() < _EXPONENT):
        return Refused(text, "is beyond the range of floating-point numbers")
    if whole and exact == exact.to_integral_value():
        return _bounded(int(exact), text)
    number = float(text)
    if number in (float("inf"), float("-inf")) or (number == 0 and exact):
        return Refused(text, "is beyond the range of floating-point numbers")
    return number


def _integer(text: str) -> int | Refused:
    if len(text) > _EXPONENT:
        return Refused(text[:20] + "…", f"has {len(text):,} digits; the largest number is {LARGEST:,}")
    return _bounded(int(text, 0) if _BASED.fullmatch(text) else int(text), text)


def _bounded(number: int, text: str) -> int | Refused:
    return number if abs(number) <= LARGEST else Refused(text, f"is too large; the largest number is {LARGEST:,}")


def _no_number(text: str, whole: bool) -> str:
    what = "a valid integer" if whole else "a valid number"
    if text in SWITCHES:
        return f"is yes or no, but must be a number: {what}"
    digits = text.replace("_", "").replace(",", "")
    if digits != text and _FLOAT.fullmatch(digits):
        return f"is no number in YAML 1.2; write {digits}: {what}"
    if re.fullmatch(r"[0-9]+(:[0-9]+)+", text):
        return f"is no number but a time; write it as {what} in the field's unit"
    return f"must be {what}"
