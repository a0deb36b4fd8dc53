"""Where sites publish different outer states after a round: every site computes it again, and most of them are right.

The state after a round follows from the state before it, the certificate and the contributions. So who differs is
settled by recomputation, each leg's from what its private store holds and what peers' contributions hash to, not from
memory. What it comes to is published like any digest, signed by the site's gateway, under three topics:

    recomputed/<k>/certificate    the certificate it follows
    recomputed/<k>/momentum       the outer momentum after the round
    recomputed/<k>                the outer state after the round, last

The rule, in full: a recomputation counts if it follows the round's certificate. A state and momentum that strictly
more than half of the parties recomputed, and at least two, are those that hold; otherwise it is undecided. The parties
are the sites that published a state, those that recomputed one, and those that the round still waited for. Whoever
published or recomputed another state differs.

A party is named by what it signed. The rule finds faults of memory, disks and programs, and a lone liar; where most
parties lie, the honest site is the one that differs, and what it kept shows it (`consortium.train.replay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from consortium.domain.training import Certificate, Recomputed, Round, Settlement
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json


def topics(number: int) -> dict[str, str]:
    """Return the topics of a recomputation's parts, in the order in which they are published."""
    whole = f"recomputed/{number}"
    return {"certificate": f"{whole}/certificate", "momentum": f"{whole}/momentum", "outer": whole}


def certificate_digest(certificate: Certificate) -> str:
    """Return the digest of a certificate without its signature."""
    return digest_json(replace(certificate, signature=""))


def recomputations(said: Mapping[str, Mapping[str, str]]) -> dict[str, Recomputed]:
    """Return the whole recomputations by site; `said` holds the digests by part and site."""
    sites = set.intersection(*(set(part) for part in said.values()))
    return {site: Recomputed(**{part: said[part][site] for part in said}) for site in sorted(sites)}


def settle(
    certificate: Certificate,
    published: Mapping[str, str],
    recomputed: Mapping[str, Recomputed],
    awaited: Iterable[str],
) -> Settlement:
    """Return what the rule at the head of this module gives; `awaited` are sites that the round waits for."""
    parties = tuple(sorted({*published, *recomputed, *awaited}))
    follows = certificate_digest(certificate)
    votes = {site: one for site, one in recomputed.items() if one.certificate == follows}
    counted = Counter((one.outer, one.momentum) for one in votes.values())
    (outer, momentum), times = max(counted.items(), key=lambda item: (item[1], item[0]), default=(("", ""), 0))
    if times < 2 or 2 * times <= len(parties):
        return Settlement(parties=parties, outer="")
    agree = tuple(site for site in sorted(votes) if (votes[site].outer, votes[site].momentum) == (outer, momentum))
    wrong = {site for site, said in published.items() if said != outer} | (recomputed.keys() - set(agree))
    return Settlement(parties=parties, outer=outer, momentum=momentum, agree=agree, differ=tuple(sorted(wrong)))


def check_settlement(current: Round, recomputed: Mapping[str, Recomputed]) -> Settlement:
    """Return a round's settlement if what sites published and recomputed bears it out, late ones included.

    Raises VerificationError where it does not.
    """
    given, certificate, published = current.settlement, current.certificate, current.outer_digests or {}
    if given is not None and certificate is not None and given.outer:
        wanted = Recomputed(certificate=certificate_digest(certificate), momentum=given.momentum, outer=given.outer)
        agree = {site for site, one in recomputed.items() if one == wanted}
        for_it = agree | {site for site in published.keys() - recomputed.keys() if published[site] == given.outer}
        parties = {*given.parties, *published, *recomputed}
        if len(agree) >= 2 and set(given.agree) <= agree and 2 * len(for_it) > len(parties):
            return given
    raise VerificationError(
        f"the settlement does not follow from the recomputations: it is {given!r}, sites published {published!r} and "
        f"recomputed {dict(recomputed)!r}",
        where=f"job {current.job}, round {current.number}",
        fix="stop the job and open a dispute with what the sites published",
    )
