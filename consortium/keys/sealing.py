"""Sealing to recipients: HPKE (RFC 9180) wraps a random content key for each, AES-256-GCM holds the content.

HPKE suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The content is cut into segments of 4 MiB, each with
its own nonce of 7 random bytes, a 32-bit counter and a last-segment mark (the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizar, 2015): segments cannot be reordered, dropped or cut off; content may exceed 2 GiB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from consortium.errors import ConfigError, VerificationError
from consortium.keys.files import load_key, save_key

SEGMENT_BYTES = 4 << 20
_TAG_BYTES = 16
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = b"consortium/seal/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedParts:
    """A sealed content: the key wrapped per recipient (base64), the nonce prefix (base64) and the ciphertext."""

    wrapped: dict[str, str]
    nonce: str
    ciphertext: bytes


class SealingKey:
    """A private X25519 key. Its file is PEM (PKCS 8), mode 0600."""

    __slots__ = ("_key", "public")

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        """The public key: base64 of its raw 32 bytes."""

    @classmethod
    def generate(cls) -> SealingKey:
        """Make a new key from the system's randomness."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | Path) -> SealingKey:
        """Read a key file. Raises NotFoundError, or ConfigError where it is no X25519 key or open to others."""
        return cls(load_key(path, X25519PrivateKey, "sealing key (X25519)"))  # type: ignore[type-abstract]  # for isinstance

    def save(self, path: str | Path) -> None:
        """Write the key file with mode 0600. Raises ConflictError where it exists."""
        save_key(path, self._key)

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return the content key; raises VerificationError where it was not wrapped for this key and `info`."""
        try:
            return _SUITE.decrypt(wrapped, self._key, info=info)
        except (InvalidTag, ValueError) as fault:
            raise VerificationError("the envelope was not sealed to this key, or was changed") from fault


def seal(plaintext: bytes, recipients: Mapping[str, str], aad: bytes) -> SealedParts:
    """Seal `plaintext` to `recipients` (site id to public sealing key); `aad` is bound to it and stays readable."""
    if not recipients:
        raise ValueError("an envelope needs at least one recipient")
    key, prefix = AESGCM.generate_key(256), os.urandom(7)
    wrapped = {
        site: base64.b64encode(_SUITE.encrypt(key, _public_key(site, public), info=_info(site, aad))).decode()
        for site, public in sorted(recipients.items())
    }
    box, view = AESGCM(key), memoryview(plaintext)
    count = _segments(len(plaintext), SEGMENT_BYTES)
    parts = (
        box.encrypt(_nonce(prefix, i, i == count - 1), view[i * SEGMENT_BYTES : (i + 1) * SEGMENT_BYTES], aad)
        for i in range(count)
    )
    return SealedParts(wrapped=wrapped, nonce=base64.b64encode(prefix).decode(), ciphertext=b"".join(parts))


def open_sealed(parts: SealedParts, site: str, key: SealingKey, aad: bytes) -> bytes:
    """Return the plaintext that was sealed to `site`.

    Raises VerificationError where `site` is no recipient, or where content, header or key were changed.
    """
    if site not in parts.wrapped:
        raise VerificationError(
            f"the envelope is not sealed to {site}", fix="ask the sender to release it to this site"
        )
    try:
        wrapped = base64.b64decode(parts.wrapped[site], validate=True)
        prefix = base64.b64decode(parts.nonce, validate=True)
    except ValueError as fault:  # of text that is not ASCII, too
        raise VerificationError("the envelope's header is not base64") from fault
    try:
        box = AESGCM(key.unwrap(wrapped, _info(site, aad)))
    except ValueError as fault:  # the sender chose it
        raise VerificationError("the envelope's content key is no AES key") from fault
    size, view = SEGMENT_BYTES + _TAG_BYTES, memoryview(parts.ciphertext)
    count = _segments(len(view), size)
    if len(prefix) != 7:
        raise VerificationError("the envelope's nonce prefix is not 7 bytes")
    try:
        return b"".join(
            box.decrypt(_nonce(prefix, i, i == count - 1), view[i * size : (i + 1) * size], aad) for i in range(count)
        )
    except (InvalidTag, ValueError) as fault:
        raise VerificationError("the sealed content or its header was changed") from fault


def _info(site: str, aad: bytes) -> bytes:
    return _INFO + site.encode() + b"\0" + hashlib.sha256(aad).digest()


def _nonce(prefix: bytes, counter: int, last: bool) -> bytes:
    return prefix + counter.to_bytes(4, "big") + bytes([last])


def _segments(length: int, size: int) -> int:
    return max(1, -(-length // size))


def _public_key(site: str, public: str) -> X25519PublicKey:
    try:
        return X25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
    except (binascii.Error, ValueError) as fault:
        raise ConfigError(f"the sealing key of {site} is not base64 of 32 bytes", where=site) from fault
