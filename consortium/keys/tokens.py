"""Bearer tokens of the embedded federation: claims, signed by the server's key. Beyond it, OIDC takes their place."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from consortium.domain.codec import from_json
from consortium.domain.partner import Role
from consortium.errors import AuthError, UsageError, VerificationError
from consortium.keys.canonical import canonical
from consortium.keys.signing import SigningKey, verify

_PREFIX = "cst1"
_CONTEXT = b"consortium/token/1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Who the bearer is (`fr/amelie`, `fr-1`), of which partner, with which roles, until when."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    subject: str
    roles: tuple[Role, ...]
    partner: str
    expires_ms: int


def issue(key: SigningKey, subject: str, roles: tuple[Role, ...] | list[Role], partner: str, expires_ms: int) -> str:
    """Return a token `cst1.CLAIMS.SIGNATURE` (base64url)."""
    claims = Claims(subject=subject, roles=tuple(roles), partner=partner, expires_ms=expires_ms)
    body = canonical(claims)
    signature = base64.b64decode(key.sign(_CONTEXT + body))
    return ".".join((_PREFIX, _encode(body), _encode(signature)))


def check(public: str, token: str, now_ms: int) -> Claims:
    """Return the claims of a token; raises AuthError where it is malformed, not ours, or expired (says when)."""
    fix = "get a new token from an admin"
    try:
        prefix, body_text, signature_text = token.split(".")
        if prefix != _PREFIX:
            raise ValueError(prefix)
        body, signature = _decode(body_text), _decode(signature_text)
        verify(public, _CONTEXT + body, base64.b64encode(signature).decode(), what="the token")
        claims = from_json(Claims, json.loads(body), where="token")
    except VerificationError as fault:
        raise AuthError("the token was not issued by this server", fix=fix) from fault
    except (ValueError, binascii.Error, UsageError) as fault:
        raise AuthError("the token is malformed", fix=fix) from fault
    if now_ms >= claims.expires_ms:
        when = datetime.fromtimestamp(claims.expires_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        raise AuthError(f"the token of {claims.subject} expired on {when}", fix=fix)
    return claims


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not the one base64url text of its bytes")
    return data
