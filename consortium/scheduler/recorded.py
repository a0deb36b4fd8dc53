"""The input of a cycle with the plan made from it, as one file: written anywhere, decided again anywhere.

The file is canonical JSON, `{"plan": ..., "snapshot": ...}`. `plan` is null where the scheduler failed on the snapshot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from consortium.domain.codec import from_json, to_json
from consortium.errors import UsageError
from consortium.keys.canonical import canonical, digest_json
from consortium.scheduler.cycle import schedule
from consortium.scheduler.types import Plan, Snapshot

LONGEST = 200
"""Characters of a value that a difference shows."""
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A recorded cycle, decided again."""

    snapshot: Snapshot
    plan: Plan
    """What is decided now."""
    digest: str
    """Of that plan's canonical JSON."""
    recorded: str
    """Of the plan in the file."""
    difference: str
    """The first one between the two plans; empty where they are the same bit for bit."""


def record(snapshot: Snapshot, plan: Plan | None) -> bytes:
    """Return a snapshot and the plan made from it as a file."""
    return canonical({"snapshot": to_json(snapshot), "plan": None if plan is None else to_json(plan)}) + b"\n"


def replay(data: bytes, *, where: str = "snapshot") -> Replayed:
    """Decide a recorded cycle again and compare. Raises UsageError for what is no such file."""
    document = _document(data, where)
    snapshot = from_json(Snapshot, document["snapshot"], where=where)
    unread = _first_difference(document["snapshot"], to_json(snapshot), "snapshot", partly=True)
    if unread:
        raise UsageError(f"a snapshot that this version does not read as it stands: {unread}", where=where)
    plan = schedule(snapshot)
    decided, recorded = to_json(plan), document["plan"]
    same = canonical(decided) == canonical(recorded)
    return Replayed(
        snapshot=snapshot,
        plan=plan,
        digest=digest_json(decided),
        recorded=digest_json(recorded),
        difference="" if same else _first_difference(recorded, decided, "plan"),
    )


def _document(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
        canonical(document)  # what canonical JSON cannot hold is refused before anything is decided
    except (ValueError, RecursionError, UsageError) as fault:
        raise UsageError(f"not a recorded cycle: {fault}", where=where) from fault
    if not isinstance(document, dict) or set(document) != {"snapshot", "plan"}:
        fix = "write one with: consortium snapshot dump"
        raise UsageError("not a recorded cycle: it needs `snapshot` and `plan`, and nothing else", where=where, fix=fix)
    return document


def _first_difference(then: Any, now: Any, path: str, *, partly: bool = False) -> str:
    """Name the first place where two JSON values differ. `partly`: what `then` leaves out may have any value."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then if partly else {*then, *now})
        pairs = [(f"{path}.{key}", then.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys]
    elif isinstance(then, list) and isinstance(now, list):
        both = range(max(len(then), len(now)))
        pairs = [(f"{path}[{i}]", then[i] if i < len(then) else _ABSENT, now[i] if i < len(now) else _ABSENT)
                 for i in both]  # fmt: skip
    else:
        same = type(then) is type(now) and then == now
        return "" if same else f"{path}: {_shown(then)} in the file, {_shown(now)} now"
    return next((found for at, a, b in pairs if (found := _first_difference(a, b, at, partly=partly))), "")


def _shown(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
