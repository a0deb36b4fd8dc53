"""The forms of what a program says to the server by way of the gateway: digests, numbers and codes, and never text.

A program could write anything in their place, and no policy is asked for what rounds need.
"""

from __future__ import annotations

import re

from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CODE = re.compile(r"[a-z_]{0,40}\Z")
_TOPIC = re.compile(r"[a-z0-9_-]{1,40}(/[a-z0-9_-]{1,40}){0,3}\Z")


def is_digest(text: str) -> bool:
    """Tell whether `text` is `sha256:` and 64 hex digits."""
    return bool(_DIGEST.match(text))


def digest(text: str, where: str) -> str:
    """Return a digest; raises UsageError for anything else."""
    if not is_digest(text):
        raise UsageError(f"{text[:40]!r} is no digest", where=where, fix="give 'sha256:' and 64 hex digits")
    return text


def hexadecimal(text: str, where: str) -> str:
    """Return a float as `float.hex` writes it; raises UsageError for anything else."""
    try:
        if len(text) <= 40 and float.fromhex(text).hex() == text:
            return text
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"{text[:40]!r} is no number in hexadecimal", where=where, fix="write it with float.hex()")


def count(number: int, where: str) -> int:
    """Return a whole number that every JSON reader keeps, from 0; raises UsageError for any other."""
    if not 0 <= number <= MAX_SAFE_INTEGER:
        raise UsageError(f"a whole number is below 0 or above {MAX_SAFE_INTEGER:,}", where=where)
    return number


def code(text: str, where: str) -> str:
    """Return a reason's code; raises UsageError for anything else."""
    if not _CODE.match(text):
        raise UsageError(f"{text[:40]!r} is no code", where=where, fix="give at most 40 of a to z and '_'")
    return text


def topic(text: str) -> str:
    """Return what an agreement is about, fit to stand in a path; raises UsageError for anything else."""
    if not _TOPIC.match(text):
        fix = "give up to four words of 40 of a to z, 0 to 9, '_' and '-', with '/' between them"
        raise UsageError(f"{text[:40]!r} is no topic", where="agreement", fix=fix)
    return text
