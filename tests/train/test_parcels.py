"""Large bytes over a border: parts, put together again, and what a sender may not do to who fetches them."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

import numpy as np
import pytest

from consortium.client.leg import LegSession
from consortium.domain.data import Artifact, ArtifactClass
from consortium.domain.training import Commit
from consortium.errors import ConsortiumError, NotFoundError, PolicyDeniedError, UnreachableError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train import parcels
from consortium.train.codes import FP32
from consortium.train.exchange import Exchange
from consortium.train.outer import to_bytes, vector_digest
from consortium.train.parcels import fetch, send
from consortium.train.peers import INITIAL
from consortium.train.received import Received
from consortium.train.screen import Gates
from tests.train.hub import Hub, serve
from tests.train.test_peers import SIZE, line, made, peers

SITES = ("de-1", "fr-1", "uy-1")
DATA = bytes(range(250))
CLASS = ArtifactClass.PSEUDO_GRADIENT


@dataclass
class At:
    """A site's line to the hub, as far as artifacts go."""

    site: str
    hub: Hub
    faults: dict[str, ConsortiumError] = field(default_factory=dict)
    """What receiving from a sender raises."""
    received: int = 0
    """How many artifacts were fetched."""

    def send(self, cls, name, data, *, round=0, recipients=None):
        to = [site for site in SITES if site != self.site] if recipients is None else recipients
        return self.hub.send(self.site, str(cls), name, data, round, to)

    def inbox(self, round: int | None = None) -> list[Artifact]:
        return self.hub.inbox(self.site, round)

    def receive(self, artifact: Artifact) -> bytes:
        if artifact.sender in self.faults:
            raise self.faults[artifact.sender]
        return self.hub.receive(self.site, artifact.digest)

    def receive_into(self, artifact: Artifact, file: BinaryIO) -> int:
        self.received += 1
        return file.write(self.receive(artifact))


@pytest.fixture
def hub() -> Hub:
    return Hub(SITES)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """Let bytes be cut as finely as these tests cut them."""
    monkeypatch.setattr(parcels, "PART_BYTES", 1)


def sent(hub: Hub, site: str, *, part_bytes: int = 100, **more) -> None:
    send(cast(Exchange, At(site, hub)), CLASS, "pseudo-gradient-3", DATA, round=3, part_bytes=part_bytes, **more)


def fetched(at: At, *, most_bytes: int = 250, first: str = "uy-1", digest: str = digest_of(DATA)) -> bytes:
    return fetch(cast(Exchange, at), CLASS, digest, round=3, first=first, most_bytes=most_bytes)


@pytest.mark.parametrize(("part_bytes", "artifacts"), [(250, 1), (249, 2), (100, 3), (1, 250)])
def test_what_is_cut_arrives_whole(hub: Hub, part_bytes, artifacts):
    sent(hub, "uy-1", part_bytes=part_bytes)
    assert len(hub.artifacts) == artifacts
    assert fetched(At("de-1", hub)) == DATA


def test_one_part_crosses_as_it_always_did(hub: Hub):
    sent(hub, "uy-1", part_bytes=250)
    ((artifact, _),) = hub.artifacts
    assert (artifact.name, artifact.digest) == ("pseudo-gradient-3", digest_of(DATA))


def test_what_a_sender_withheld_comes_from_who_passes_it_on(hub: Hub):
    sent(hub, "uy-1", recipients=["fr-1"])
    with pytest.raises(NotFoundError):
        fetched(At("de-1", hub))
    sent(hub, "fr-1", recipients=["de-1"])
    assert fetched(At("de-1", hub)) == DATA


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (VerificationError("the envelope does not open"), VerificationError),
        (PolicyDeniedError("nothing from uy-1"), VerificationError),
        (UnreachableError("away"), UnreachableError),
    ],
)
def test_whatever_receiving_raises_is_the_senders_fault_and_another_is_asked(hub: Hub, fault, seen):
    sent(hub, "uy-1")
    at = At("de-1", hub, {"uy-1": fault})
    with pytest.raises(seen):
        fetched(at)
    sent(hub, "fr-1", recipients=["de-1"])
    assert fetched(at) == DATA


def test_nothing_is_fetched_that_is_larger_than_it_can_be_or_of_another_class(hub: Hub):
    sent(hub, "uy-1", part_bytes=250)
    artifact, data = hub.artifacts[0]
    at = At("de-1", hub, {"uy-1": AssertionError("fetched")})  # type: ignore[dict-item]  # nothing is to catch it
    hub.artifacts[0] = replace(artifact, size_bytes=1 << 40), data
    with pytest.raises(VerificationError, match="more than the 250 bytes"):
        fetched(at)
    hub.artifacts[0] = replace(artifact, artifact_class=ArtifactClass.METRIC), data
    with pytest.raises(NotFoundError):
        fetched(at)


@pytest.mark.parametrize(
    "name", ["x.{}.1.999999", "x.{}.0.1", "x.{}.2.1", "x.{}.1.1.1", "x.{}.-1.1", "{}.1.1", "x", ""]
)
def test_names_that_promise_other_parts_are_worth_nothing(hub: Hub, name):
    part = name.format(digest_of(DATA).removeprefix("sha256:")[:16])
    At("uy-1", hub).send(CLASS, part, DATA[:100], round=3)
    with pytest.raises((NotFoundError, VerificationError)):
        fetched(At("de-1", hub))
    sent(hub, "fr-1")
    assert fetched(At("de-1", hub)) == DATA


def announced(hub: Hub, parts: int, *, of: int = 0, size: int = 100) -> None:
    """Announce that uy-1 has the bytes in so many parts, which are something else."""
    short = digest_of(DATA).removeprefix("sha256:")[:16]
    for number in range(1, parts + 1):
        At("uy-1", hub).send(CLASS, f"x.{short}.{number}.{of or parts}", bytes(size), round=3)


def test_more_parts_than_the_bytes_can_take_are_not_fetched(hub: Hub, monkeypatch):
    monkeypatch.setattr(parcels, "PART_BYTES", 100)
    announced(hub, 4, size=1)
    at = At("de-1", hub)
    with pytest.raises(NotFoundError):
        fetched(at)
    assert at.received == 0
    sent(hub, "fr-1")
    assert fetched(at) == DATA
    assert at.received == 3


def test_a_sender_is_tried_once_whatever_it_announces(hub: Hub):
    for count in range(2, 9):
        announced(hub, count, size=1)
    at = At("de-1", hub)
    with pytest.raises(VerificationError, match="does not hash"):
        fetched(at)
    assert at.received == 2


def test_nothing_is_fetched_after_what_is_too_long_already(hub: Hub):
    announced(hub, 9)
    at = At("de-1", hub)
    with pytest.raises(VerificationError, match="more than the 250 bytes"):
        fetched(at)
    assert at.received == 3, "an envelope's overhead is allowed for each part, and the plaintext counts"


def test_what_an_offer_left_in_the_file_is_not_part_of_the_next(hub: Hub):
    announced(hub, 2)
    sent(hub, "fr-1")
    assert fetched(At("de-1", hub)) == DATA


def test_contributions_fetched_at_once_are_not_in_memory(hub: Hub):
    """Measured through the gateway's HTTP interface, four at a time."""
    size = 1 << 21
    senders = ("aa-1", "bb-1", "cc-1", "dd-1")
    for number, site in enumerate(senders):
        hub.send(site, str(CLASS), "x", bytes([number]) * (4 * size), 1, ["fr-1"])
    commits = [
        Commit(job="j", round=1, site=one.sender, tokens=1, steps=1, digest=one.digest, norm="", loss="")
        for one, _ in hub.artifacts
    ]
    with serve(line(hub, "fr-1")) as url, LegSession(url, "t") as session:
        received = Received(cast(Exchange, session), FP32)
        tracemalloc.start()
        asked = received.take_all(commits, size)
        asked.look()
        until = time.monotonic() + 60
        while asked.waiting and time.monotonic() < until:
            asked.wait(0.1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (asked.waiting, asked.faults) == (set(), {})
    assert bytes(received[commits[2].digest]) == bytes([2]) * (4 * size)
    assert peak < 4 * size, f"{peak:,} bytes at the peak, of {len(senders)} contributions of {4 * size:,}"


def test_a_round_goes_the_same_way_where_vectors_cross_in_parts(hub: Hub):
    for site in SITES:
        one, at = made(site), line(hub, site)
        send(at, CLASS, "pseudo-gradient-1", one.data, round=1, part_bytes=7)
        at.commit(1, tokens=10, steps=1, digest=one.digest, norm=one.norm, loss=one.loss)
    assert len(hub.artifacts) == 3 * 3
    hub.agreed["outer/0"] = dict.fromkeys(SITES, "x")
    for site in SITES:
        peers(line(hub, site)).judge(hub.round(1), made(site), Gates(), SIZE)
    certificate = hub.round(1).certificate
    assert certificate is not None
    found = peers(line(hub, "de-1")).gather(certificate, made("de-1"), SIZE)
    assert {site: to_bytes(vector) for site, vector in found.items()} == {site: made(site).data for site in SITES}


def test_the_initial_state_crosses_in_parts(hub: Hub):
    state = np.arange(SIZE, dtype=np.float32)
    send(line(hub, "de-1"), ArtifactClass.OUTER_STATE, INITIAL, to_bytes(state), part_bytes=7)
    line(hub, "de-1").agree("outer/0", vector_digest(state))
    np.testing.assert_array_equal(peers(line(hub, "fr-1")).receive_initial(), state)
