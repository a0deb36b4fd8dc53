from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.data import ArtifactClass
from consortium.errors import UsageError, VerificationError
from consortium.keys.canonical import digest
from consortium.keys.sealing import SealingKey
from consortium.keys.signing import SigningKey
from consortium.storage.envelope import EnvelopeHeader, check, pack, peek, unpack

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
    assert peek(data) == check(data, sender_key=SENDER.public) == HEADER
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
