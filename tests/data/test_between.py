"""Sites of one job find near-duplicates between them: three legs in threads, a real store each, messages by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from consortium.data import between
from consortium.data.minhash import sign, view
from consortium.domain.cleaning import AcrossConfig, NearConfig
from consortium.domain.data import ArtifactClass
from consortium.errors import ConfigError, UnreachableError, VerificationError
from consortium.storage.objects import ObjectStore
from tests.data.drawn import altered, text
from tests.s3 import S3

NEAR = NearConfig()
ORDER = AcrossConfig(order=("fr", "de", "uy"))
SITES = ("de-1", "fr-1", "uy-1")
SHARED = text(1)
LEFT = {
    "fr-1": [text(10), SHARED],
    "de-1": [altered(SHARED, 1, 1), text(11)],
    "uy-1": [text(12), altered(SHARED, 2, 1)],
}


class KilledError(Exception):
    """Stands for a leg's death."""


@dataclass
class Post:
    """What gateways do between them: every message reaches those it names, and stays there."""

    boxes: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    agreed: dict[str, dict[str, str]] = field(default_factory=dict)
    told: threading.Condition = field(default_factory=threading.Condition)
    sites: int = len(SITES)

    def at(self, site: str, stops_at: str = "") -> At:
        return At(self, site, stops_at)


@dataclass
class At:
    post: Post
    site: str
    stops_at: str = ""
    """The name of the message before which this site's leg dies."""

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Any:
        assert artifact_class is ArtifactClass.MINHASH
        if name == self.stops_at:
            raise KilledError(name)
        with self.post.told:
            for recipient in recipients or ():
                self.post.boxes[recipient, self.site, name] = data
            self.post.told.notify_all()

    def wait_for(self, name: str, round: int, senders: Iterable[str], timeout_s: float) -> dict[str, bytes]:
        wanted = {sender: (self.site, sender, name) for sender in senders}
        with self.post.told:
            if not self.post.told.wait_for(lambda: set(wanted.values()) <= self.post.boxes.keys(), timeout_s):
                raise UnreachableError(f"no {name}")
            return {sender: self.post.boxes[key] for sender, key in wanted.items()}

    def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
        with self.post.told:
            agreed = self.post.agreed.setdefault(topic, {})
            agreed[self.site] = digest
            self.post.told.notify_all()
            if not self.post.told.wait_for(lambda: len(agreed) == self.post.sites, timeout_s):
                raise UnreachableError(f"silent about {topic}")
            if len(set(agreed.values())) > 1:
                raise VerificationError("differ")


@pytest.fixture
def stores(s3: S3) -> dict[str, ObjectStore]:
    return {site: s3.fresh() for site in SITES}


def leg(
    site: str,
    post: Post,
    store: ObjectStore,
    config: AcrossConfig = ORDER,
    timeout_s: float = 30,
    *,
    near: NearConfig = NEAR,
    stops_at: str = "",
) -> between.Agreed:
    peers = between.Peers(site=site, sites=SITES, exchange=post.at(site, stops_at), timeout_s=timeout_s)
    texts = LEFT[site]
    return between.agree(
        peers, near, config, lambda key: (view(sign(texts, near, key), near, key), [""] * 2), store, "p"
    )


def everybody(post: Post, stores: dict[str, ObjectStore], sites: Iterable[str] = SITES) -> dict[str, between.Agreed]:
    with ThreadPoolExecutor(len(SITES)) as pool:
        started = {site: pool.submit(leg, site, post, stores[site]) for site in sites}
        return {site: each.result() for site, each in started.items()}


def repeating(post: Post, others: list[str]) -> None:
    """Play fr-1, first in the order, which has no text: it says again what it hears from de-1."""
    me = post.at("fr-1")
    me.send(ArtifactClass.MINHASH, "across-key", bytes(32), recipients=others)
    for name in ("across-offer", "across-detail"):
        for each in (f"{name}-commitment", name):
            heard = me.wait_for(each, 0, ["de-1"], 1)["de-1"]
            me.send(ArtifactClass.MINHASH, each, heard, recipients=others)


def test_one_site_keeps_the_copy_and_all_decide_alike(stores: dict[str, ObjectStore]) -> None:
    found = everybody(Post(), stores)
    assert {site: agreed.gives_up.tolist() for site, agreed in found.items()} == {"fr-1": [], "de-1": [0], "uy-1": [1]}
    assert len({agreed.digest for agreed in found.values()}) == 1
    assert {agreed.sites for agreed in found.values()} == {("fr-1", "de-1", "uy-1")}


def test_a_leg_that_starts_anew_says_the_same_again(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    first = everybody(post, stores)
    said = dict(post.boxes)
    assert all((everybody(post, stores)[site].gives_up == agreed.gives_up).all() for site, agreed in first.items())
    assert post.boxes == said


@pytest.mark.parametrize("stops_at", ["-key", "-offer-commitment", "-offer", "-detail-commitment", "-detail"])
def test_a_leg_that_died_before_a_message_goes_on_with_the_others(
    stores: dict[str, ObjectStore], stops_at: str
) -> None:
    post = Post()
    with ThreadPoolExecutor(len(SITES)) as pool:
        dies = pool.submit(leg, "fr-1", post, stores["fr-1"], stops_at=f"across{stops_at}")
        others = {site: pool.submit(leg, site, post, stores[site]) for site in ("de-1", "uy-1")}
        with pytest.raises(KilledError):
            dies.result()
        again = leg("fr-1", post, stores["fr-1"])
        assert {again.digest} == {each.result().digest for each in others.values()}
    assert again.gives_up.tolist() == []


def test_a_site_whose_key_is_forgotten_draws_no_other_and_says_what_to_do(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    everybody(post, stores)
    said = dict(post.boxes)
    parts = {site: store.get("p/across/key") for site, store in stores.items()}
    for site, store in stores.items():
        between.forget(store, "p")
        assert not any(store.get(key) == parts[site] for key in store.list("p/across"))
        with pytest.raises(UnreachableError, match="key is deleted") as fault:
            leg(site, post, store)
        assert str(fault.value.fix).startswith("submit the job again")
    assert post.boxes == said


def test_a_site_that_repeats_anothers_messages_is_refused_by_name(stores: dict[str, ObjectStore]) -> None:
    post = Post(sites=3)
    with ThreadPoolExecutor(len(SITES)) as pool:
        honest = {site: pool.submit(leg, site, post, stores[site], timeout_s=60) for site in ("de-1", "uy-1")}
        pool.submit(repeating, post, list(honest))
        for each in honest.values():
            with pytest.raises(VerificationError, match="the across-offer of fr-1 is not the one") as fault:
                each.result()
            assert fault.value.where == "fr-1"
    assert not any(name.startswith("across-detail") for _, _, name in post.boxes)


def test_nobody_shows_a_message_before_all_have_committed_to_theirs(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    post.at("fr-1").send(ArtifactClass.MINHASH, "across-key", bytes(32), recipients=["de-1", "uy-1"])
    with ThreadPoolExecutor(len(SITES)) as pool:
        waiting = [pool.submit(leg, site, post, stores[site], timeout_s=4) for site in ("de-1", "uy-1")]
        for each in waiting:
            with pytest.raises(UnreachableError, match="across-offer-commitment"):
                each.result()
    assert {name for _, _, name in post.boxes} == {"across-key", "across-offer-commitment"}


def test_a_leg_that_starts_anew_holds_the_others_to_their_first_commitments(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    with ThreadPoolExecutor(len(SITES)) as pool:
        legs = {site: pool.submit(leg, site, post, stores[site]) for site in ("fr-1", "uy-1")}
        dies = pool.submit(leg, "de-1", post, stores["de-1"], stops_at="across-detail-commitment")
        with pytest.raises(KilledError):
            dies.result()
        shown = post.boxes["fr-1", "de-1", "across-offer"]
        for name, data in (
            ("across-offer-commitment", between.commitment("fr-1", shown)),
            ("across-offer", shown),
        ):
            post.boxes["de-1", "fr-1", name] = data
        with pytest.raises(VerificationError, match="the across-offer of fr-1 is not the one"):
            leg("de-1", post, stores["de-1"])
        post.boxes["de-1", "fr-1", "across-offer"] = post.boxes["uy-1", "fr-1", "across-offer"]
        leg("de-1", post, stores["de-1"])
        assert all(each.result().sites for each in legs.values())


def test_no_site_can_have_the_key_of_an_earlier_job_again(stores: dict[str, ObjectStore], s3: S3) -> None:
    said, later = [], {site: s3.fresh() for site in SITES}
    for kept in (stores, later):
        post = Post()
        everybody(post, kept)
        later["fr-1"].put("p/across/key", stores["fr-1"].get("p/across/key"))
        said.append(post.boxes)
    assert said[0]["de-1", "fr-1", "across-key"] == said[1]["de-1", "fr-1", "across-key"]
    offers = [set(np.frombuffer(boxes["fr-1", "de-1", "across-offer"], "<u8", offset=24)) for boxes in said]
    assert not offers[0] & offers[1]


LEAKING = (
    (NearConfig(ngram=1), ORDER, "near.ngram"),
    (NearConfig(rows=7), ORDER, "near.rows"),
    (NearConfig(bands=33), ORDER, "near.bands"),
    (NEAR, AcrossConfig(order=ORDER.order, min_words=49), "across.min_words"),
)


@pytest.mark.parametrize(("near", "config", "where"), LEAKING)
def test_settings_that_let_others_read_texts_are_refused_at_home_before_any_message(
    stores: dict[str, ObjectStore], near: NearConfig, config: AcrossConfig, where: str
) -> None:
    post = Post()
    with pytest.raises(ConfigError, match="others could read words out of signatures") as fault:
        leg("fr-1", post, stores["fr-1"], config, near=near)
    assert fault.value.where == where
    assert not post.boxes
    assert not list(stores["fr-1"].list("p/"))


def test_nobody_is_done_before_all_have_written_what_they_keep(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    agreed = everybody(post, stores)

    def conclude(site: str, timeout_s: float) -> None:
        peers = between.Peers(site=site, sites=SITES, exchange=post.at(site), timeout_s=timeout_s)
        between.conclude(peers, agreed[site].digest, stores[site], "p")

    for site in ("de-1", "uy-1"):
        with pytest.raises(UnreachableError, match="across/done"):
            conclude(site, 0.1)
        assert stores[site].exists("p/across/key")
    for site in ("fr-1", "de-1", "uy-1"):
        conclude(site, 30)
        assert not stores[site].exists("p/across/key")


def test_no_text_and_no_plain_signature_is_sent(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    everybody(post, stores)
    plain = {site: view(sign(texts, NEAR), NEAR) for site, texts in LEFT.items()}
    for (_, sender, _), data in post.boxes.items():
        assert not any(word.encode() in data for word in SHARED.split() if len(word) > 6)
        assert not any(plain[sender].bands[band].tobytes()[:8] in data for band in range(NEAR.bands))


def test_a_peer_with_another_order_or_none_is_named(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    other = AcrossConfig(order=ORDER.order, min_words=60)
    with ThreadPoolExecutor(len(SITES)) as pool:
        started = {
            site: pool.submit(leg, site, post, stores[site], other if site == "uy-1" else ORDER, timeout_s=60)
            for site in SITES
        }
        with pytest.raises(VerificationError, match="uy-1 made its offer with other settings"):
            started["de-1"].result()
    with pytest.raises(ConfigError, match="does not name uy"):
        leg("fr-1", Post(), stores["fr-1"], AcrossConfig(order=("fr", "de")))


def test_a_key_that_is_none_is_its_senders_fault(stores: dict[str, ObjectStore]) -> None:
    for wrong in (b"", b"short", bytes(65)):
        post = Post()
        for sender, part in (("fr-1", wrong), ("uy-1", bytes(32))):
            post.at(sender).send(ArtifactClass.MINHASH, "across-key", part, recipients=["de-1"])
        with pytest.raises(VerificationError, match=f"the key that fr-1 sent has {len(wrong)} bytes"):
            leg("de-1", post, stores["de-1"])


def test_an_offer_that_is_garbage_is_its_senders_fault(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    for sender, offered in (("fr-1", b"\x00" * 99), ("uy-1", b"")):
        for name, data in (
            ("across-key", bytes(32)),
            ("across-offer-commitment", between.commitment(sender, offered)),
            ("across-offer", offered),
        ):
            post.at(sender).send(ArtifactClass.MINHASH, name, data, recipients=["de-1"])
    with pytest.raises(VerificationError, match="fr-1 sent is no offer"):
        leg("de-1", post, stores["de-1"])


def test_a_silent_peer_is_waited_for_only_so_long(stores: dict[str, ObjectStore]) -> None:
    with pytest.raises(UnreachableError, match="across-key"):
        leg("fr-1", Post(), stores["fr-1"], timeout_s=0.2)
