"""Domain values to JSON and back: wrong types and missing fields are errors with their path.

Built on pydantic, which validates plain dataclasses. Integers above 2^53 - 1 leave as strings and come back as
integers, so that no reader in another language rounds them. Unknown keys are refused where a class sets
`__pydantic_config__` to forbid them (whatever people write); messages between processes ignore them, so that an
agent one protocol version behind keeps working.

A dataclass may name fields in `__left_out__`: they do not stand in its JSON while they have their default. Fields that
people's signed values got later are of this kind, so that what was signed before them keeps its bytes and its digest.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError

T = TypeVar("T")


@lru_cache(maxsize=256)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ANY_EXACT: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="constants"))


def to_json(value: Any, *, exact: bool = False) -> Any:
    """Return `value` (a domain dataclass, or lists and dicts of them) as plain JSON types.

    JSON has no NaN and no infinity: they become null, or, where `exact`, stay what they are for the caller to refuse.
    Raises UsageError for a key that holds half a surrogate pair.
    """
    try:
        dumped = (_ANY_EXACT if exact else _ANY).dump_python(value, mode="json")
    except UnicodeEncodeError as fault:
        raise UsageError(f"cannot be written as JSON: a key is no text: {fault.reason}") from fault
    return _safe(dumped, value)


def from_json(cls: type[T], data: Any, *, where: str = "message") -> T:
    """Return `data` as an instance of `cls`.

    Raises UsageError naming each offending key by its path below `where`.
    """
    try:
        result: T = _adapter(cast(Any, cls)).validate_python(data)
        return result
    except ValidationError as fault:
        issues = "; ".join(f"{'.'.join(str(p) for p in e['loc']) or '.'}: {e['msg']}" for e in fault.errors()[:5])
        raise UsageError(f"not a valid {cls.__name__}: {issues}", where=where) from fault


def storable(data: Any) -> Any:
    """Return plain JSON with each character that a database does not take (NUL, half a surrogate pair) replaced."""
    if isinstance(data, str):
        return _NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", data)
    if isinstance(data, dict):
        return {storable(key): storable(value) for key, value in data.items()}
    if isinstance(data, list):
        return [storable(item) for item in data]
    return data


_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def _safe(dumped: Any, value: Any) -> Any:
    """Return what pydantic made of `value`, without fields left out, and with integers that every reader keeps."""
    if dumped is None or isinstance(dumped, str):
        return dumped
    if isinstance(dumped, dict):
        if isinstance(value, dict):
            pairs = zip(dumped.items(), value.values(), strict=True)
            return {key: _safe(item, source) for (key, item), source in pairs}
        left_out = _left_out(cast(Any, type(value)))
        if not left_out:
            return {key: _safe(item, getattr(value, key)) for key, item in dumped.items()}
        return {
            key: _safe(item, source)
            for key, item in dumped.items()
            if (source := getattr(value, key)) != left_out.get(key, MISSING)
        }
    if isinstance(dumped, list):
        return [_safe(item, source) for item, source in zip(dumped, value, strict=True)]
    if isinstance(dumped, int) and not isinstance(dumped, bool) and abs(dumped) > MAX_SAFE_INTEGER:
        return str(dumped)
    if isinstance(dumped, float) and MAX_SAFE_INTEGER < abs(dumped) < 1e21 and dumped.is_integer():
        return str(int(dumped))  # JSON readers would take it for an integer above what they keep
    return dumped


@lru_cache(maxsize=256)
def _left_out(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that are left out while they have their default, with it."""
    fields: dict[str, Field[Any]] = cls.__dataclass_fields__
    found = {}
    for name in sorted(getattr(cls, "__left_out__", ())):
        factory = fields[name].default_factory
        found[name] = fields[name].default if factory is MISSING else factory()
    return found
