"""A family of runs: one configuration and, for each member, what it changes."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from training.config import RunConfig, Section, load_config, read_yaml
from training.errors import ConfigError


class FamilyFile(Section):
    """What the YAML file holds."""

    base: Path = Field(description="configuration that every member changes, relative to the family's file")
    overrides: tuple[str, ...] = Field((), description="section.key=value of all members")
    runs: dict[str, tuple[str, ...]] = Field(min_length=1, description="member -> its own overrides")

    @field_validator("overrides", mode="after")
    @classmethod
    def _one_line(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(" ".join(text.split()) for text in overrides)


@dataclass(frozen=True)
class Member:
    """One run of the family: what would be typed, and the configuration that it gives."""

    base: Path
    overrides: tuple[str, ...]
    config: RunConfig


def load_family(path: Path, overrides: tuple[str, ...] = ()) -> list[Member]:
    """Read a family's file; `overrides` go to every member, last. Raises `ConfigError` that lists all problems."""
    raw = read_yaml(path)
    try:
        family = FamilyFile.model_validate(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in error.errors()]
        rule = (
            "a family's file has base: FILE, overrides: [section.key=value, …] and runs: {name: [section.key=value, …]}"
        )
        raise ConfigError("\n".join(f"{path}: {line}; {rule}" for line in lines)) from None
    base = Path(os.path.relpath(path.parent / family.base))
    members, problems = [], []
    for name, own in family.runs.items():
        given = (*family.overrides, *own, *overrides)
        all_of_it = (f"run.name={path.stem}-{name}", *given)
        try:
            members.append(Member(base, all_of_it, load_config(base, all_of_it)))
        except ConfigError as error:
            problems.append(f"{path}: runs.{name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return members
