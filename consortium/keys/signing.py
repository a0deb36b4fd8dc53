"""Ed25519 signatures. Public keys and signatures travel as base64: of the raw 32 and 64 bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consortium.domain.codec import to_json
from consortium.errors import UsageError, VerificationError
from consortium.keys.canonical import canonical
from consortium.keys.files import load_key, save_key

V = TypeVar("V")


class SigningKey:
    """A private Ed25519 key. Its file is PEM (PKCS 8), mode 0600."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        """The public key: base64 of its raw 32 bytes."""

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a key file. Raises NotFoundError, or ConfigError where it is no Ed25519 key or open to others."""
        return cls(load_key(path, Ed25519PrivateKey, "signing key (Ed25519)"))  # type: ignore[type-abstract]  # for isinstance

    def save(self, path: str | Path) -> None:
        """Write the key file with mode 0600. Raises ConflictError where it exists."""
        save_key(path, self._key)

    def sign(self, message: bytes) -> str:
        """Return the signature of `message` as base64."""
        return base64.b64encode(self._key.sign(message)).decode()


def verify(public: str, message: bytes, signature: str, *, what: str) -> None:
    """Raise VerificationError, naming `what`, unless `signature` is `public`'s over `message`."""
    try:
        raw = _unbase64(signature)
        _public_key(public).verify(raw, message)
    except (InvalidSignature, ValueError, binascii.Error) as fault:
        raise VerificationError(
            f"the signature of {what} does not hold under key {fingerprint(public)}",
            fix="compare the key with the one its owner published; if it is right, the content was changed",
        ) from fault


def signed_bytes(value: Any) -> bytes:
    """Return what is signed of `value`: the canonical JSON of all its fields but `signature`."""
    data = to_json(value, exact=True)
    return canonical({key: item for key, item in data.items() if key != "signature"})


def sign_value(key: SigningKey, value: V) -> V:
    """Return `value` (a dataclass with a field `signature`, or a dict) with its signature filled in."""
    signature = key.sign(signed_bytes(value))
    if isinstance(value, dict):
        return cast(V, {**value, "signature": signature})
    if not is_dataclass(value) or "signature" not in {f.name for f in fields(value)}:
        raise TypeError(f"{type(value).__name__} has no field 'signature'")
    return cast(V, replace(cast(Any, value), signature=signature))


def verify_value(public: str, value: Any, *, what: str = "") -> None:
    """Raise VerificationError unless the signature in `value` is `public`'s over its other fields."""
    signature = value.get("signature", "") if isinstance(value, dict) else value.signature
    called = what or type(value).__name__
    try:
        message = signed_bytes(value)
    except UsageError as fault:
        raise VerificationError(f"nobody signed {called}: it {fault.what}") from fault
    verify(public, message, str(signature), what=called)


def fingerprint(public: str) -> str:
    """Return a name of a public key for people to compare: 128 bits of the SHA-256 of its raw bytes, in groups of four.

    Nobody finds a second key with the same: 2^128 trials are out of reach, where 2^64 would not be for those who own
    clusters of GPUs.
    """
    found = _hashed(public)
    return " ".join(found[at : at + 4] for at in range(0, 32, 4)) if found else f"{public!r} (not a key)"


def key_label(public: str) -> str:
    """Return the first 16 hex digits of the same: a label to tell keys apart by, too short to compare them by."""
    return _hashed(public)[:16] or f"{public!r} (not a key)"


def _hashed(public: str) -> str:
    """The SHA-256 of a public key in hex; empty where it is none."""
    try:
        raw = _unbase64(public)
    except (ValueError, binascii.Error):
        return ""
    return hashlib.sha256(raw).hexdigest() if len(raw) == 32 else ""


def _unbase64(text: str) -> bytes:
    """Decode strictly: one text per value, so that no changed character goes unseen."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 with bits set beyond its end")
    return raw


@lru_cache(maxsize=1024)
def _public_key(public: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(_unbase64(public))
