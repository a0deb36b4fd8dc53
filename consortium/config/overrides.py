"""Command-line overrides: parsed with Hydra's grammar, then only listed keys and plain values pass.

`+`, `++`, `~`, package moves, `hydra.*`, interpolations, sweeps and functions are refused before Hydra composes
anything.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.config.build import nearest, unknown
from consortium.config.kinds import GROUPS, PARAMS, JobKeys
from consortium.domain.job import JobKind
from consortium.errors import ConfigError

MAX_OVERRIDES = 200
_MAX_CHARS = 20_000
_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOverride:
    """One accepted override: where it came from, its key, and its value or the choice for a group."""

    text: str
    position: int
    key: str = ""
    choice: bool = False
    value: Any = None

    @property
    def where(self) -> str:
        """Return how messages name it."""
        return f"override {self.position}: {self.text[:_SHOWN_CHARS]}"


def allowed_keys(kind: JobKind) -> tuple[str, ...]:
    """Return every key an override of this kind may set, groups included, sorted."""
    keys = {field.name for field in dataclasses.fields(JobKeys)}
    if kind is not JobKind.EVALUATE:
        keys.discard("model")
    keys |= set(_leaves(PARAMS[kind])) | set(GROUPS[kind])
    return tuple(sorted(keys))


def parse_overrides(kind: JobKind, overrides: tuple[str, ...], configs: Path) -> tuple[JobOverride, ...]:
    """Return the overrides after checking each. Raises ConfigError naming the override and the nearest right key."""
    choices = {group: [path.stem for path in sorted((configs / group).glob("*.yaml"))] for group in GROUPS[kind]}
    return accept(f"{kind.value} job", overrides, allowed_keys(kind), choices, example="gpus=2")


def accept(
    what: str,
    overrides: tuple[str, ...],
    known: Sequence[str],
    choices: Mapping[str, Sequence[str]],
    *,
    example: str,
) -> tuple[JobOverride, ...]:
    """Return the overrides of a `what` after checking each: only `known` keys with plain values, or one of `choices`.

    Raises ConfigError naming the override and the nearest right key.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(overrides) > MAX_OVERRIDES:
        raise ConfigError(f"more than {MAX_OVERRIDES} overrides", fix="put them into a config group")
    parser = OverridesParser.create()
    accepted: list[JobOverride] = []
    for position, text in enumerate(overrides, start=1):
        where = f"override {position}: {text[:_SHOWN_CHARS]}"
        if len(text) > _MAX_CHARS:
            raise ConfigError(f"longer than {_MAX_CHARS} characters", where=where)
        if "${" in text:
            raise ConfigError("interpolation is not allowed", where=where, fix="write the value itself")
        if "=" not in text and not text.startswith("~"):
            raise ConfigError("not an override", where=where, fix=f"write key=value, such as {example}")
        try:
            (parsed,) = parser.parse_overrides([text])
        except (HydraException, RecursionError, ValueError) as fault:
            problem, fix = _problem(str(fault.__cause__ or fault), text)
            raise ConfigError(
                f"not a valid override: {problem}", where=where, fix=fix or f"write key=value, such as {example}"
            ) from fault
        accepted.append(_accept(what, parsed, JobOverride(text=text, position=position), known, choices))
    return tuple(accepted)


def _accept(
    what: str, parsed: Any, given: JobOverride, known: Sequence[str], choices: Mapping[str, Sequence[str]]
) -> JobOverride:
    from hydra.core.override_parser.types import OverrideType

    key = str(parsed.key_or_group)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(
            f"{key!r} is not a {what.split()[-1]} key: Hydra's own settings are closed",
            where=given.where,
            fix="remove it",
        )
    if parsed.type is not OverrideType.CHANGE or parsed.package is not None:
        raise ConfigError(
            "'+', '++', '~' and '@' are not allowed: an override changes a key that exists",
            where=given.where,
            fix="write key=value",
        )
    if parsed.is_sweep_override():
        fix = "a list is written key=[a,b]; a number has a point, not a comma: key=0.7"
        raise ConfigError("sweeps and ranges are not allowed", where=given.where, fix=fix)
    if key not in known:
        name = key.rpartition(".")[2]
        alike = [one for one in known if one.rpartition(".")[2] == name]  # right, but in another place
        raise unknown(f"key for a {what}:", key, alike or known, given.where)
    value = parsed.value()
    choice = key in choices
    if choice:
        if not isinstance(value, str) or value not in choices[key]:
            raise ConfigError(
                f"{value!r} is not a choice for {key!r}", where=given.where, fix=nearest(str(value), choices[key])
            )
    elif not _is_plain(value):
        raise ConfigError("only numbers, words, true, false and lists of these are allowed", where=given.where)
    return dataclasses.replace(given, key=key, choice=choice, value=value)


def _problem(said: str, text: str) -> tuple[str, str]:
    """What the parser says, in words for people, and what to do about it; empty where that is nothing special."""
    if said.startswith("LexerNoViableAlt"):
        quoted = f"""'{text.partition("=")[0][:_SHOWN_CHARS]}="…"'"""
        return "a sign that may stand in quotes only, or a quote without its end", f"put the value in quotes: {quoted}"
    if said.startswith("Exceeds the limit"):
        return "a number of thousands of digits", "write a smaller one"
    return said.strip().splitlines()[0][:200], ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | bool)


def _leaves(cls: Any, prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(cls)
    found: list[str] = []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        found += _leaves(kind, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return found
