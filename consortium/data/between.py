"""Near-duplicates between the sites of one job: the messages of `across`, as legs exchange them.

    key      every site draws 32 random bytes and sends them to every other: all of them make the key
    offer    every site to every other: `across.offer`
    detail   every site to every other: of the documents met, `across.detail`
    digest   of the decision, compared by all (topic `across`), and again by all once each wrote what it keeps (`done`)

Before offer and detail each site sends its commitment to it, SHA-256 of its id and the message, and no message is sent
before all commitments are there: so no site makes its message of another's. Who repeats what an earlier job showed it
has nothing either: with this site's part the key is another one.

All are of class `minhash`, so they leave only where both partners' policies let that class pass, and gateways seal them
for their recipients: the server sees their sizes. A site's part of the key stands in its private store until it is
done, so that a leg that starts anew says the same again; then it is deleted. The commitments stay there: a leg that
starts anew holds the others to the first ones that it had.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consortium.data import across
from consortium.data.exchange import PATIENCE_S, Exchange
from consortium.data.minhash import Signatures
from consortium.data.shingles import I64
from consortium.domain import ids
from consortium.domain.bounds import FieldError
from consortium.domain.cleaning import AcrossConfig, NearConfig, check_exchange
from consortium.domain.data import ArtifactClass
from consortium.errors import ConfigError, NotFoundError, UnreachableError, VerificationError
from consortium.keys.canonical import canonical
from consortium.storage.objects import ObjectStore

TOPIC = "across"
DONE = "across/done"
RULE = "dedup.across"
_KEY, _OFFER, _DETAIL = "across-key", "across-offer", "across-detail"
_COMMITMENT = "-commitment"
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
    publication. Raises ConfigError where `near` and `config` would let others read texts out of the messages,
    UnreachableError where a peer stays silent or this site's part of the key is gone, PolicyDeniedError where a policy
    lets nothing pass, VerificationError where what a peer sent is not what it may send.
    """
    try:
        check_exchange(near, config)
    except FieldError as fault:
        raise ConfigError(str(fault), where=fault.keys[0], fix=fault.fix) from fault
    sites = peers.in_order(config)
    keep = across.KeepConfig(states=sites, keeper=config.keeper, min_words=config.min_words)
    key = _key(peers, sites, store, prefix)
    signatures, published = sign(key)
    own, rows = across.offer(signatures, published, near, keep, key)
    told = _told(peers, _OFFER, own, sites, store, prefix)
    offers = {site: across.read_offer(told[site], near, keep, key, sender=site) for site in sites}
    places = across.met(offers, sites)[peers.site]
    details = _told(peers, _DETAIL, across.detail(signatures, rows, places), sites, store, prefix)
    decision = across.decide(offers, details, near, keep)
    peers.exchange.wait_agreement(TOPIC, decision.digest(), peers.timeout_s)
    return Agreed(np.sort(rows[decision.gives_up[peers.site]]), decision.digest(), sites)


def conclude(peers: Peers, decision: str, store: ObjectStore, prefix: str) -> None:
    """Say that what this site keeps by the decision of this digest is written, wait until all say so, forget the key.

    Raises UnreachableError where a peer stays silent, VerificationError where it wrote by another decision.
    """
    peers.exchange.wait_agreement(DONE, decision, peers.timeout_s)
    forget(store, prefix)


def forget(store: ObjectStore, prefix: str) -> None:
    """Delete this site's part of the key: nothing that it holds can be tested with it any more."""
    store.delete(_own_part(prefix))


def commitment(site: str, message: bytes) -> bytes:
    """Return what binds a site to a message before it shows it; with the site's id, so that no other can use it."""
    return hashlib.sha256(site.encode() + b"\0" + message).digest()


def _told(
    peers: Peers, name: str, own: bytes, sites: Sequence[str], store: ObjectStore, prefix: str
) -> dict[str, bytes]:
    """Send `own` and return what every site sent, once all have committed to theirs."""
    others = [site for site in sites if site != peers.site]
    bound = commitment(peers.site, own)
    peers.exchange.send(ArtifactClass.MINHASH, name + _COMMITMENT, bound, recipients=others)
    commitments = _committed(peers, name, bound, sites, store, prefix)
    if commitments[peers.site] != bound:
        raise _unbound(peers.site, name)
    peers.exchange.send(ArtifactClass.MINHASH, name, own, recipients=others)
    told = {**peers.exchange.wait_for(name, 0, others, peers.timeout_s), peers.site: own}
    for site in others:
        if commitment(site, told[site]) != commitments[site]:
            raise _unbound(site, name)
    return told


def _committed(
    peers: Peers, name: str, own: bytes, sites: Sequence[str], store: ObjectStore, prefix: str
) -> dict[str, bytes]:
    """Return every site's first commitment, which is kept before this site shows its message."""
    where = f"{prefix}/across/{name}-{hashlib.sha256(' '.join(sites).encode()).hexdigest()[:16]}.json"
    try:
        return {site: bytes.fromhex(bound) for site, bound in json.loads(store.get(where)).items()}
    except NotFoundError:
        others = [site for site in sites if site != peers.site]
        came = peers.exchange.wait_for(name + _COMMITMENT, 0, others, peers.timeout_s)
        found = {**came, peers.site: own}
        store.put(where, canonical({site: bound.hex() for site, bound in found.items()}))
        return found


def _unbound(site: str, name: str) -> VerificationError:
    return VerificationError(
        f"the {name} of {site} is not the one that it committed to",
        where=site,
        fix="submit the job again; where it happens again, ask that site what its leg does",
    )


def _key(peers: Peers, sites: Sequence[str], store: ObjectStore, prefix: str) -> bytes:
    """Return the key that the parts of all sites make: none of them can choose it, or have an earlier job's again."""
    others = [site for site in sites if site != peers.site]
    own = _drawn(store, prefix)
    peers.exchange.send(ArtifactClass.MINHASH, _KEY, own, recipients=others)
    parts = {**peers.exchange.wait_for(_KEY, 0, others, peers.timeout_s), peers.site: own}
    whole = hashlib.sha256(b"across")
    for site, part in sorted(parts.items()):
        if len(part) != _KEY_BYTES:
            raise VerificationError(f"the key that {site} sent has {len(part)} bytes, not {_KEY_BYTES}", where=site)
        whole.update(site.encode() + b"\0" + part)
    return whole.digest()


def _drawn(store: ObjectStore, prefix: str) -> bytes:
    where, released = _own_part(prefix), f"{prefix}/across/released"
    try:
        return store.get(where)
    except NotFoundError:
        if store.exists(released):
            raise UnreachableError(
                "this job's exchange has ended and its key is deleted, but what this site wrote is no longer whole",
                where=where,
                fix="submit the job again: a new job draws a new key",
            ) from None
    key = secrets.token_bytes(_KEY_BYTES)
    store.put(where, key)
    store.put(released, b"its part of the key was drawn")
    return key


def _own_part(prefix: str) -> str:
    return f"{prefix}/across/key"
