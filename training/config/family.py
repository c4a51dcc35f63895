"""A family of runs: one base configuration, and for each member the overrides that it changes."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from data_prep.field_values import fit
from data_prep.sources.places import local_path
from training.config import RunConfig, Section, load_config, read_yaml
from training.errors import ConfigError


class FamilyFile(Section):
    """The content of a family's YAML file."""

    base: Path = Field(description="configuration that every member changes, relative to the family's file")
    overrides: tuple[str, ...] = Field((), description="section.key=value of all members")
    runs: dict[str, tuple[str, ...]] = Field(min_length=1, description="member -> its own overrides")

    @field_validator("overrides", mode="after")
    @classmethod
    def _one_line(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(re.sub(r"\s*\n\s*", " ", text.strip("\n")) for text in overrides)


@dataclass(frozen=True)
class Member:
    """One run of the family: its base file, its overrides as on a command line, and the resulting configuration."""

    base: Path
    overrides: tuple[str, ...]
    config: RunConfig


def load_family(path: Path, overrides: tuple[str, ...] = ()) -> list[Member]:
    """Read a family's file; `overrides` are applied to every member after its own.

    Raises `ConfigError` that lists all problems.
    """
    raw = read_yaml(path)
    try:
        family = FamilyFile.model_validate(fit(raw, FamilyFile))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in error.errors()]
        rule = (
            "a family's file has base: FILE, overrides: [section.key=value, …] and runs: {name: [section.key=value, …]}"
        )
        raise ConfigError("\n".join(f"{path}: {line}; {rule}" for line in lines)) from None
    base = Path(os.path.relpath(path.parent / local_path(family.base)))
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
