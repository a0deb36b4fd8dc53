"""What peers signed, as the server relays it: nothing reaches a leg whose signature does not hold.

The rule that makes a certificate out of commits and verdicts leaves signatures out; this is where they are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consortium.domain.codec import from_json
from consortium.domain.protocol import LegOffer
from consortium.domain.training import Round
from consortium.errors import VerificationError
from consortium.keys.roster import Rosters, verify_ruling
from consortium.keys.signing import verify_value
from consortium.keys.trust import Trust


def check_round(
    trust: Trust, offer: LegOffer, number: int, answer: Any, rosters: Callable[[], Rosters] | None = None
) -> Round:
    """Return a round as the server gave it. Raises VerificationError unless every part was signed by whom it names.

    `rosters` gives the people whom partners vouch for; it is asked only where somebody ruled.
    """
    where = f"{offer.job} round {number}"
    found = from_json(Round, answer, where=where)
    named = {(found.job, found.number)} | {(commit.job, commit.round) for commit in found.commits}
    named |= {(verdict.job, verdict.round) for verdict in found.verdicts}
    if found.certificate is not None:
        named.add((found.certificate.job, found.certificate.round))
    if named != {(offer.job, number)}:
        raise VerificationError("the server answered with parts of another round", where=where)
    _check_rulings(found, offer, number, rosters, where)
    for commit in found.commits:
        verify_value(_peer_key(trust, offer, commit.site), commit, what=f"the commit of {commit.site} to {where}")
    for verdict in found.verdicts:
        verify_value(_peer_key(trust, offer, verdict.judge), verdict, what=f"a verdict of {verdict.judge} in {where}")
    if found.certificate is not None:
        verify_value(trust.server_key, found.certificate, what=f"the certificate of {where}")
    return found


def _check_rulings(
    found: Round, offer: LegOffer, number: int, rosters: Callable[[], Rosters] | None, where: str
) -> None:
    if any(ruling.job != offer.job or ruling.round > number for ruling in found.rulings):
        raise VerificationError("the server answered with rulings of another job or a later round", where=where)
    if found.rulings and rosters is not None:
        people = rosters()
        for ruling in found.rulings:
            verify_ruling(ruling, people, offer.spec.spec.account)


def check_agreements(trust: Trust, offer: LegOffer, topic: str, answer: Any) -> dict[str, str]:
    """Return the digests published for a topic, by site; `answer` holds digest and signature of each."""
    signed = from_json(dict[str, dict[str, str]], answer, where=f"agreements on {topic}")
    for site, said in signed.items():
        statement = {"job": offer.job, "topic": topic, "site": site, **said}
        verify_value(_peer_key(trust, offer, site), statement, what=f"the digest of {topic} by {site}")
    return {site: said["digest"] for site, said in signed.items()}


def _peer_key(trust: Trust, offer: LegOffer, site: str) -> str:
    """Return a site's key. Any trusted site's word on the job counts, as it signs none but for a leg of its own: a leg
    that catches up reads rounds of sites that have left since and are not its peers any more."""
    if site not in trust.sites:
        raise VerificationError(f"{site!r} takes no part in {offer.job}", where=offer.leg)
    return trust.sites[site].signing
