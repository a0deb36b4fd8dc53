"""Domain values to JSON and back: wrong types and missing fields are errors with their path.

Built on pydantic, which validates plain dataclasses. Integers above 2^53 - 1 leave as strings and come back as
integers, so that no reader in another language rounds them. Unknown keys are refused where a class sets
`__pydantic_config__` to forbid them (whatever people write); messages between processes ignore them, so that an
agent one protocol version behind keeps working.
"""

from __future__ import annotations

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
    """
    return _safe((_ANY_EXACT if exact else _ANY).dump_python(value, mode="json"))


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


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_SAFE_INTEGER:
        return str(value)
    if isinstance(value, float) and MAX_SAFE_INTEGER < abs(value) < 1e21 and value.is_integer():
        return str(int(value))  # JSON readers would take it for an integer above what they keep
    return value
