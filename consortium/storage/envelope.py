"""The envelope: how one artifact travels between territories, sealed to its recipients and signed by its sender.

    offset  size    what
    0       8       magic `CSENVEL1`
    8       4       length H of the header, little-endian
    12      H       header: canonical JSON (RFC 8785) of `_Outer`, signed
    12 + H  ...     ciphertext

The artifact's own header is bound to the ciphertext as associated data, and the signature covers header, wrapped
keys and the ciphertext's digest: an envelope can be checked without opening it, and a changed one cannot be opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from consortium.domain.codec import from_json
from consortium.domain.data import NEVER_CROSS, ArtifactClass
from consortium.errors import UsageError, VerificationError
from consortium.keys.canonical import canonical, digest
from consortium.keys.sealing import SealedParts, SealingKey, open_sealed, seal
from consortium.keys.signing import SigningKey, sign_value, verify_value

_MAGIC = b"CSENVEL1"
_START = len(_MAGIC) + 4
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeHeader:
    """What is in the envelope, readable by whoever carries it. `digest` is of the plaintext."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    job: str
    artifact_class: ArtifactClass
    name: str
    round: int
    sender: str
    recipients: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        if self.artifact_class in NEVER_CROSS:
            raise ValueError(f"{self.artifact_class.value} text never crosses a border")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    artifact: EnvelopeHeader
    wrapped: dict[str, str]
    nonce: str
    ciphertext_digest: str
    signature: str = ""


def pack(header: EnvelopeHeader, plaintext: bytes, recipients: Mapping[str, str], key: SigningKey) -> bytes:
    """Seal `plaintext` to `recipients` (site id to public sealing key) and sign the whole as `header.sender`.

    Raises UsageError where header, plaintext and recipients do not belong together.
    """
    if header.recipients != tuple(sorted(recipients)):
        raise UsageError(f"the header names {', '.join(header.recipients)}, the keys are of {', '.join(recipients)}")
    if header.digest != digest(plaintext):
        raise UsageError(f"the header's digest is not the plaintext's: {header.digest}", where=header.name)
    parts = seal(plaintext, recipients, canonical(header))
    outer = sign_value(
        key,
        _Outer(
            artifact=header,
            wrapped=parts.wrapped,
            nonce=parts.nonce,
            ciphertext_digest=digest(parts.ciphertext),
        ),
    )
    head = canonical(outer)
    return b"".join((_MAGIC, len(head).to_bytes(4, "little"), head, parts.ciphertext))


def check(data: bytes, *, sender_key: str) -> EnvelopeHeader:
    """Return the header after checking signature and ciphertext digest under the sender's public signing key."""
    return _checked(data, sender_key)[0].artifact


def unpack(data: bytes, *, site: str, sealing: SealingKey, sender_key: str) -> tuple[EnvelopeHeader, bytes]:
    """Return header and plaintext of an envelope sealed to `site`.

    Raises VerificationError unless the signature is the sender's, `site` is a recipient and every digest holds.
    """
    outer, ciphertext = _checked(data, sender_key)
    parts = SealedParts(wrapped=outer.wrapped, nonce=outer.nonce, ciphertext=ciphertext)
    plaintext = open_sealed(parts, site, sealing, canonical(outer.artifact))
    if digest(plaintext) != outer.artifact.digest:
        raise VerificationError("the plaintext does not hash to what the envelope says", where=outer.artifact.name)
    return outer.artifact, plaintext


def _checked(data: bytes, sender_key: str) -> tuple[_Outer, bytes]:
    outer, ciphertext = _parse(data)
    verify_value(sender_key, outer, what=f"the envelope {outer.artifact.name!r} of {outer.artifact.sender}")
    if digest(ciphertext) != outer.ciphertext_digest:
        raise VerificationError("the envelope's content was changed or cut", where=outer.artifact.name)
    return outer, ciphertext


def _parse(data: bytes) -> tuple[_Outer, bytes]:
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _START:
        raise VerificationError("not an envelope: it does not start with CSENVEL1")
    length = int.from_bytes(data[len(_MAGIC) : _START], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - _START):
        raise VerificationError(f"the envelope is cut: its header takes {length} bytes, {len(data)} are there")
    try:
        outer = from_json(_Outer, json.loads(data[_START : _START + length]), where="envelope header")
    except (ValueError, RecursionError, UsageError) as fault:
        raise VerificationError(f"the envelope's header is not readable: {fault}") from fault
    return outer, data[_START + length :]
