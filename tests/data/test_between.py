"""Sites of one job find near-duplicates between them: three legs in threads, a real store each, messages by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Post:
    """What gateways do between them: every message reaches those it names, and stays there."""

    boxes: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    agreed: dict[str, str] = field(default_factory=dict)
    told: threading.Condition = field(default_factory=threading.Condition)
    sites: int = len(SITES)

    def at(self, site: str) -> At:
        return At(self, site)


@dataclass
class At:
    post: Post
    site: str

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
            self.post.agreed[self.site] = digest
            self.post.told.notify_all()
            if not self.post.told.wait_for(lambda: len(self.post.agreed) == self.post.sites, timeout_s):
                raise UnreachableError("silent")
            if len(set(self.post.agreed.values())) > 1:
                raise VerificationError("differ")


@pytest.fixture
def stores(s3: S3) -> dict[str, ObjectStore]:
    return {site: s3.fresh() for site in SITES}


def leg(
    site: str, post: Post, store: ObjectStore, config: AcrossConfig = ORDER, timeout_s: float = 30
) -> between.Agreed:
    peers = between.Peers(site=site, sites=SITES, exchange=post.at(site), timeout_s=timeout_s)
    texts = LEFT[site]
    return between.agree(
        peers, NEAR, config, lambda key: (view(sign(texts, NEAR, key), NEAR, key), [""] * 2), store, "p"
    )


def everybody(post: Post, stores: dict[str, ObjectStore]) -> dict[str, between.Agreed]:
    with ThreadPoolExecutor(len(SITES)) as pool:
        started = {site: pool.submit(leg, site, post, stores[site]) for site in SITES}
        return {site: each.result() for site, each in started.items()}


def test_one_site_keeps_the_copy_and_all_decide_alike(stores: dict[str, ObjectStore]) -> None:
    found = everybody(Post(), stores)
    assert {site: agreed.gives_up.tolist() for site, agreed in found.items()} == {"fr-1": [], "de-1": [0], "uy-1": [1]}
    assert len({agreed.digest for agreed in found.values()}) == 1
    assert {agreed.sites for agreed in found.values()} == {("fr-1", "de-1", "uy-1")}


def test_a_leg_that_starts_anew_says_the_same_again_until_the_key_is_forgotten(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    first = everybody(post, stores)
    said = dict(post.boxes)
    assert all((everybody(post, stores)[site].gives_up == agreed.gives_up).all() for site, agreed in first.items())
    assert post.boxes == said
    between.forget(stores["fr-1"], "p")
    assert [list(store.list("p/across")) for store in stores.values()] == [[], [], []]
    fresh = Post()
    everybody(fresh, stores)
    assert fresh.boxes["de-1", "fr-1", "across-key"] != said["de-1", "fr-1", "across-key"]
    assert fresh.boxes["de-1", "fr-1", "across-offer"] != said["de-1", "fr-1", "across-offer"]


def test_no_text_and_no_plain_signature_is_sent(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    everybody(post, stores)
    plain = {site: view(sign(texts, NEAR), NEAR) for site, texts in LEFT.items()}
    for (_, sender, _), data in post.boxes.items():
        assert not any(word.encode() in data for word in SHARED.split() if len(word) > 6)
        assert not any(plain[sender].bands[band].tobytes()[:8] in data for band in range(NEAR.bands))


def test_a_peer_with_another_order_or_none_is_named(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    other = AcrossConfig(order=("uy", "de", "fr"), min_words=10)
    with ThreadPoolExecutor(len(SITES)) as pool:
        started = {
            site: pool.submit(leg, site, post, stores[site], other if site == "uy-1" else ORDER, timeout_s=3)
            for site in SITES
        }
        with pytest.raises(VerificationError, match="uy-1 made its offer with other settings"):
            started["de-1"].result()
    with pytest.raises(ConfigError, match="does not name uy"):
        leg("fr-1", Post(), stores["fr-1"], AcrossConfig(order=("fr", "de")))


def test_a_key_that_is_none_is_its_senders_fault(stores: dict[str, ObjectStore]) -> None:
    for wrong in (b"", b"short", bytes(65)):
        post = Post()
        post.at("fr-1").send(ArtifactClass.MINHASH, "across-key", wrong, recipients=["de-1"])
        with pytest.raises(VerificationError, match=f"the key that fr-1 sent has {len(wrong)} bytes"):
            leg("de-1", post, stores["de-1"])


def test_an_offer_that_is_garbage_is_its_senders_fault(stores: dict[str, ObjectStore]) -> None:
    post = Post()
    for sender, name, data in (("fr-1", "across-key", bytes(32)), ("fr-1", "across-offer", b"\x00" * 99)):
        post.at(sender).send(ArtifactClass.MINHASH, name, data, recipients=["de-1"])
    post.at("uy-1").send(ArtifactClass.MINHASH, "across-offer", b"", recipients=["de-1"])
    with pytest.raises(VerificationError, match="fr-1 sent is no offer"):
        leg("de-1", post, stores["de-1"])


def test_a_silent_peer_is_waited_for_only_so_long(stores: dict[str, ObjectStore]) -> None:
    with pytest.raises(UnreachableError, match="across-offer"):
        leg("fr-1", Post(), stores["fr-1"], timeout_s=0.2)
