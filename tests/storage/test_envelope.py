from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass
from consortium.errors import UsageError, VerificationError
from consortium.keys import sealing
from consortium.keys.canonical import canonical, digest
from consortium.keys.sealing import SealingKey
from consortium.keys.signing import SigningKey, sign_value
from consortium.storage.envelope import EnvelopeHeader, check, pack, unpack

SENDER = SigningKey.generate()
BOXES = {site: SealingKey.generate() for site in ("de-1", "uy-1")}
PLAIN = b"counts" * 1000
HEADER = EnvelopeHeader(
    job="job-1",
    artifact_class=ArtifactClass.STATISTIC,
    name="counts",
    round=0,
    sender="fr-1",
    recipients=("de-1", "uy-1"),
    digest=digest(PLAIN),
)


def packed() -> bytes:
    return pack(HEADER, PLAIN, {site: key.public for site, key in BOXES.items()}, SENDER)


@pytest.mark.parametrize("site", ["de-1", "uy-1"])
def test_every_recipient_opens_it(site: str) -> None:
    data = packed()
    assert PLAIN not in data
    assert check(data, sender_key=SENDER.public) == HEADER
    assert unpack(data, site=site, sealing=BOXES[site], sender_key=SENDER.public) == (HEADER, PLAIN)


def test_nobody_else_opens_it() -> None:
    with pytest.raises(VerificationError, match="not sealed to fr-1"):
        unpack(packed(), site="fr-1", sealing=BOXES["de-1"], sender_key=SENDER.public)
    with pytest.raises(VerificationError):
        unpack(packed(), site="uy-1", sealing=BOXES["de-1"], sender_key=SENDER.public)


def test_another_sender_is_noticed() -> None:
    with pytest.raises(VerificationError, match="envelope 'counts' of fr-1"):
        check(packed(), sender_key=SigningKey.generate().public)


def test_any_changed_byte_is_noticed() -> None:
    data = packed()
    for at in (*range(0, 1200, 13), len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(VerificationError):
            unpack(bytes(changed), site="de-1", sealing=BOXES["de-1"], sender_key=SENDER.public)


def signed(outer: dict[str, Any], ciphertext: bytes) -> bytes:
    """An envelope whose sender signs whatever stands in its header, as far as that can be signed."""
    try:
        outer = sign_value(SENDER, {key: value for key, value in outer.items() if key != "signature"})
    except UsageError:
        outer = {**outer, "signature": SENDER.sign(b"")}
    head = json.dumps(outer).encode()
    return b"CSENVEL1" + len(head).to_bytes(4, "little") + head + ciphertext


def with_key(key: bytes) -> dict[str, str]:
    """A content key of the sender's choice, wrapped for de-1 as HPKE wants it."""
    public = sealing._public_key("de-1", BOXES["de-1"].public)
    sealed = sealing._SUITE.encrypt(key, public, info=sealing._info("de-1", canonical(HEADER)))
    return {"de-1": base64.b64encode(sealed).decode()}


@pytest.mark.parametrize(
    "lie",
    [
        {"wrapped": {"de-1": "é"}},
        {"wrapped": {"de-1": "=="}},
        {"wrapped": {"de-1": ""}},
        {"wrapped": {"de-1": "AAAA"}},
        {"wrapped": with_key(b"five.")},
        {"wrapped": with_key(b"")},
        {"wrapped": with_key(b"k" * 16)},
        {"wrapped": {"de-1": "", "\ud800": ""}},
        {"nonce": "ééé"},
        {"nonce": "AAAA"},
        {"nonce": "\udfff"},
        {"artifact": to_json(HEADER) | {"name": "\ud800"}},
        {"artifact": to_json(HEADER) | {"round": 10**400}},
    ],
)
def test_whatever_its_sender_signed_opens_or_is_named(lie: dict[str, Any]) -> None:
    data = packed()
    length = int.from_bytes(data[8:12], "little")
    outer, ciphertext = json.loads(data[12 : 12 + length]), data[12 + length :]
    honest = signed(outer, ciphertext)
    assert unpack(honest, site="de-1", sealing=BOXES["de-1"], sender_key=SENDER.public) == (HEADER, PLAIN)
    with pytest.raises(VerificationError):
        unpack(signed(outer | lie, ciphertext), site="de-1", sealing=BOXES["de-1"], sender_key=SENDER.public)


@pytest.mark.parametrize("length", [0, 4, 11, 50, -1])
def test_a_cut_envelope_is_noticed(length: int) -> None:
    with pytest.raises(VerificationError):
        unpack(packed()[:length], site="de-1", sealing=BOXES["de-1"], sender_key=SENDER.public)


def test_header_and_content_must_belong_together() -> None:
    keys = {site: key.public for site, key in BOXES.items()}
    with pytest.raises(UsageError, match="digest"):
        pack(replace(HEADER, digest=digest(b"other")), PLAIN, keys, SENDER)
    with pytest.raises(UsageError, match="names"):
        pack(HEADER, PLAIN, {"de-1": keys["de-1"]}, SENDER)


@pytest.mark.parametrize("kind", [ArtifactClass.RAW, ArtifactClass.CLEAN])
def test_text_has_no_envelope(kind: ArtifactClass) -> None:
    with pytest.raises(ValueError, match="never crosses"):
        replace(HEADER, artifact_class=kind)
