"""Plain data to validated frozen dataclasses; errors name file, line and the nearest right name."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from consortium.config.marks import KeyPath, Marked
from consortium.domain.bounds import FieldError
from consortium.errors import ConfigError

T = TypeVar("T")


class Locate(Protocol):
    """Says where a value stands."""

    def __call__(self, *paths: KeyPath) -> str:
        """Return `file:line` or the override of the first of `paths`; one that an override set comes before others."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the `fix` line for an unknown name: the nearest right one, else all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.55 if len(name) > 2 else 0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(options)}" if options else "there is none"


def unknown(what: str, name: str, known: Iterable[str], where: str) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest right one."""
    return ConfigError(f"unknown {what} {name!r}", where=where, fix=nearest(name, known))


def build(cls: type[T], data: Any, locate: Locate | Marked, *, also: Iterable[str] = ()) -> T:
    """Return `data` as an instance of the dataclass `cls`, without coercion: "5" is not 5, and true is not 1.

    `locate` says where values stand; `also` are further right names to suggest for an unknown top-level key.
    Raises ConfigError for the first fault.
    """
    find = _in_file(locate) if isinstance(locate, Marked) else locate
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError as fault:
        raise ConfigError("nan and infinity are not allowed", where=find(())) from fault
    try:
        result: T = _adapter(cast(Any, cls)).validate_json(text, strict=True)
        return result
    except ValidationError as fault:
        first = min(fault.errors(), key=lambda e: (e["type"] != "unexpected_keyword_argument", e["loc"]))
        raise _translate(cls, dict(first), find, also) from fault


def _in_file(marked: Marked) -> Locate:
    def locate(*paths: KeyPath) -> str:
        return marked.where(paths[0])

    return locate


@lru_cache(maxsize=128)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _translate(cls: type, error: dict[str, Any], find: Locate, also: Iterable[str]) -> ConfigError:
    path: KeyPath = tuple(step for step in error["loc"] if step != "[key]")
    dotted = ".".join(str(step) for step in path)
    kind = error["type"]
    if kind == "unexpected_keyword_argument":
        known = [*_names(cls, path[:-1]), *(also if len(path) == 1 else ())]
        return unknown("key", dotted, _qualified(path[:-1], known), find(path))
    if kind in ("missing_argument", "missing_keyword_only_argument", "missing"):
        return ConfigError(f"{dotted!r} is missing", where=find(path[:-1]), fix=f"add {path[-1]!r} there")
    if kind == "value_error":
        fault = error["ctx"]["error"]
        if isinstance(fault, FieldError):
            return ConfigError(str(fault), where=find(*_paths(path, fault)), fix=fault.fix or None)
        message = str(fault)
        return ConfigError(message, where=find((*path, *_mentioned(message, _names(cls, path), error.get("input")))))
    shown = json.dumps(error.get("input"), ensure_ascii=False, default=str)
    if kind in ("enum", "literal_error"):
        expected = [part.strip(" '") for part in str(error["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return ConfigError(
            f"{dotted}: {shown} is not allowed", where=find(path), fix=nearest(str(error["input"]), expected)
        )
    message = str(error["msg"]).removeprefix("Input ")
    where = find(path)
    return ConfigError(
        f"{dotted}: {message[0].lower()}{message[1:]}, got {shown[:80]}",
        where=where,
        fix=_written(kind, dotted, error.get("input"), typed=where.startswith("override ")),
    )


def _written(kind: str, key: str, value: Any, *, typed: bool) -> str | None:
    """Return how a value of the right type is written; `typed`: at a shell, which takes plain quotes away."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string_type" and plain:
        quoted = f'"{value}"'
        return f"put it in quotes, and those in others: '{key}={quoted}'" if typed else f"put it in quotes: {quoted}"
    if kind in ("tuple_type", "list_type") and (plain or isinstance(value, str)):
        return f"write a list: [{str(value)[:80]}]"
    if kind == "bool_type":
        return "write true or false"
    if kind == "int_type":
        unit = " of seconds" if key.endswith("_s") else " of milliseconds" if key.endswith("_ms") else ""
        return f"write a whole number{unit}, such as {3600 if unit else 2}"
    return "write a number, such as 0.7" if kind == "float_type" else None


def _paths(parents: KeyPath, fault: FieldError) -> list[KeyPath]:
    """Return the paths of the keys that a check named; a number in them is an item's."""
    return [(*parents, *(int(step) if step.isdecimal() else step for step in key.split("."))) for key in fault.keys]


def _mentioned(message: str, names: list[str], data: Any) -> KeyPath:
    """Return what a plain ValueError speaks of: the class's first field in the message, and there the quoted value."""
    words = re.findall(r"[a-z_0-9]+", message)
    field = next((word for word in words if word in names), None)
    if field is None:
        return ()
    leaves = _leaves((data.get(field) if isinstance(data, dict) else None), (field,))
    for quoted in re.findall(r"'([^']*)'", message):
        for path, value in leaves:
            if value == quoted:
                return path
    return (field,)


def _leaves(data: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    if isinstance(data, dict):
        return [leaf for key, item in data.items() for leaf in _leaves(item, (*path, key))]
    if isinstance(data, list):
        return [leaf for index, item in enumerate(data) for leaf in _leaves(item, (*path, index))]
    return [(path, data)]


def _qualified(parents: KeyPath, names: Iterable[str]) -> list[str]:
    prefix = "".join(f"{step}." for step in parents)
    return [prefix + name for name in names]


def _names(cls: Any, path: KeyPath) -> list[str]:
    for step in path:
        cls = _child(cls, step)
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _child(cls: Any, step: str | int) -> Any:
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
        return typing.get_type_hints(cls).get(str(step))
    arguments = [a for a in typing.get_args(cls) if a is not Ellipsis and a is not type(None)]
    return arguments[-1] if arguments else None
