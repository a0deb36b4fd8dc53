"""Signed notes (https://c2sp.org/signed-note) with Ed25519 signatures: how log checkpoints are signed."""

from __future__ import annotations

import base64
import binascii
import hashlib

from consortium.errors import VerificationError
from consortium.keys.signing import SigningKey, verify

_ED25519 = b"\x01"
_DASH = "\N{EM DASH} "


def key_id(name: str, public: str) -> bytes:
    """Return the 4-byte key id: the start of SHA-256(name, newline, 0x01, raw public key)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + base64.b64decode(public)).digest()[:4]


def check_name(name: str) -> str:
    """Return `name` if it may name a log: not empty, no white space, no plus sign; else ValueError."""
    if not name or "+" in name or any(ch.isspace() for ch in name):
        raise ValueError(f"a log's name must hold no spaces and no '+', got {name!r}")
    return name


def sign_note(text: str, name: str, key: SigningKey) -> str:
    """Return `text` (ending in a newline) with its signature line."""
    if not text.endswith("\n"):
        raise ValueError("the text of a note ends in a newline")
    raw = base64.b64decode(key.sign(text.encode()))
    blob = base64.b64encode(key_id(check_name(name), key.public) + raw).decode()
    return f"{text}\n{_DASH}{name} {blob}\n"


def open_note(note: str, name: str, public: str) -> str:
    """Return the text of a note that `name` signed with key `public`.

    Signatures by others (witnesses) are left alone. Raises VerificationError.
    """
    text, gap, block = note.rpartition("\n\n")
    if not gap or not block.endswith("\n"):
        raise VerificationError("not a signed note: no signature block")
    text += "\n"
    wanted = key_id(name, public)
    for line in block[:-1].split("\n"):
        signer, _, blob = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not signer or not blob:
            raise VerificationError(f"not a signed note: malformed signature line {line[:60]!r}")
        try:
            raw = base64.b64decode(blob, validate=True)
        except (binascii.Error, ValueError) as fault:
            raise VerificationError(f"not a signed note: the signature of {signer} is not base64") from fault
        if base64.b64encode(raw).decode() != blob:
            raise VerificationError(f"not a signed note: the signature of {signer} is not canonical base64")
        if signer == name and raw[:4] == wanted:
            signature = base64.b64encode(raw[4:]).decode()
            verify(public, text.encode(), signature, what=f"the note by {name}")
            return text
    raise VerificationError(
        f"the note carries no signature by {name} with key id {wanted.hex()}",
        fix="the log's name or key is not the trusted one; compare both over another channel",
    )
