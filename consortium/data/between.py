"""Near-duplicates between the sites of one job: the messages of `across`, as legs exchange them.

    key      the first site in the order draws 32 random bytes and sends them to every other
    offer    every site to every other: `across.offer`
    detail   every site to every other: of the documents met, `across.detail`
    digest   of the decision, compared by all (topic `across`)

All are of class `minhash`, so they leave only where both partners' policies let that class pass, and gateways seal them
for their recipients: the server sees their sizes. The key stands in the first site's private store until it is done, so
that a leg that starts anew says the same again; then it is deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consortium.data import across
from consortium.data.exchange import PATIENCE_S, Exchange
from consortium.data.minhash import Signatures
from consortium.data.shingles import I64
from consortium.domain import ids
from consortium.domain.cleaning import AcrossConfig, NearConfig
from consortium.domain.data import ArtifactClass
from consortium.errors import ConfigError, NotFoundError, VerificationError
from consortium.storage.objects import ObjectStore

TOPIC = "across"
RULE = "dedup.across"
_KEY, _OFFER, _DETAIL = "across-key", "across-offer", "across-detail"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The sites of a job, this one's id, and the way between them."""

    site: str
    sites: tuple[str, ...]
    exchange: Exchange
    timeout_s: float = PATIENCE_S
    """How long the others may take to come to the same point."""

    def in_order(self, config: AcrossConfig) -> tuple[str, ...]:
        """Return all sites, those first whose copies stay. Raises ConfigError where a partner has no place."""
        missing = sorted({ids.partner_of(site) for site in self.sites} - set(config.order))
        if missing:
            raise ConfigError(
                f"the order of partners does not name {', '.join(missing)}",
                where="across.order",
                fix="name every partner whose datasets the job cleans",
            )
        return tuple(sorted(self.sites, key=lambda site: (config.order.index(ids.partner_of(site)), site)))


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all sites decided: the rows this site gives up, ascending; the decision's digest; who took part."""

    gives_up: I64
    digest: str
    sites: tuple[str, ...]


def agree(
    peers: Peers,
    near: NearConfig,
    config: AcrossConfig,
    sign: Callable[[bytes], tuple[Signatures, Sequence[str]]],
    store: ObjectStore,
    prefix: str,
) -> Agreed:
    """Exchange signatures with all peers and return what this site gives up because another keeps the copy.

    `sign` makes, with the secret key, the signatures of all documents that are left here, and their dates of
    publication. Raises UnreachableError where a peer stays silent, PolicyDeniedError where a policy lets nothing pass,
    VerificationError where what a peer sent is not what it may send.
    """
    sites = peers.in_order(config)
    others = [site for site in sites if site != peers.site]
    keep = across.KeepConfig(states=sites, keeper=config.keeper, min_words=config.min_words)
    key = _key(peers, sites[0], others, store, prefix)
    signatures, published = sign(key)
    own, rows = across.offer(signatures, published, near, keep, key)
    told = _told(peers, _OFFER, own, others)
    offers = {site: across.read_offer(told[site], near, keep, key, sender=site) for site in sites}
    places = across.met(offers, sites)[peers.site]
    details = _told(peers, _DETAIL, across.detail(signatures, rows, places), others)
    decision = across.decide(offers, details, near, keep)
    peers.exchange.wait_agreement(TOPIC, decision.digest(), peers.timeout_s)
    return Agreed(np.sort(rows[decision.gives_up[peers.site]]), decision.digest(), sites)


def forget(store: ObjectStore, prefix: str) -> None:
    """Delete the key: nothing that this site holds can be tested with it any more."""
    store.delete(f"{prefix}/across/key")


def _told(peers: Peers, name: str, own: bytes, others: Sequence[str]) -> dict[str, bytes]:
    peers.exchange.send(ArtifactClass.MINHASH, name, own, recipients=others)
    return {**peers.exchange.wait_for(name, 0, others, peers.timeout_s), peers.site: own}


def _key(peers: Peers, first: str, others: Sequence[str], store: ObjectStore, prefix: str) -> bytes:
    if peers.site != first:
        key = peers.exchange.wait_for(_KEY, 0, [first], peers.timeout_s)[first]
        if len(key) != _KEY_BYTES:
            raise VerificationError(f"the key that {first} sent has {len(key)} bytes, not {_KEY_BYTES}", where=first)
        return key
    where = f"{prefix}/across/key"
    try:
        key = store.get(where)
    except NotFoundError:
        key = secrets.token_bytes(_KEY_BYTES)
        store.put(where, key)
    peers.exchange.send(ArtifactClass.MINHASH, _KEY, key, recipients=others)
    return key
