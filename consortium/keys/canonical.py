"""Canonical JSON (RFC 8785) and SHA-256 digests: the same value gives the same bytes on every machine."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from consortium.domain.codec import to_json
from consortium.errors import UsageError


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form of `value` (domain dataclasses, lists, dicts, plain JSON).

    Integers above 2^53 - 1 become strings first. Raises UsageError for what JSON cannot hold, such as NaN or half a
    surrogate pair.
    """
    try:
        return rfc8785.dumps(to_json(value, exact=True))
    except rfc8785.CanonicalizationError as fault:
        raise UsageError(f"cannot be written as canonical JSON: {fault}") from fault


def digest(data: bytes | memoryview) -> str:
    """Return `sha256:` and the 64 hex digits of the SHA-256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of the canonical JSON of `value`."""
    return digest(canonical(value))
